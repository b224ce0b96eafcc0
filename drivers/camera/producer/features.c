#include "features.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const Feature features[FEATURE_COUNT] = {
#define FEATURE(name, kind, category, access, visibility, unit, minimum, maximum, increment,       \
                initial, choices, selector, tooltip)                                               \
    {#name,   kind,      category, access,  visibility,   unit,   minimum,                         \
     maximum, increment, initial,  choices, F_##selector, tooltip},
#include "features.def"
#undef FEATURE
};

/* Each feature has a page of registers: its value, then the greatest value it may take now. */
enum { FIRST_PAGE = 0x10000, PAGE_BYTES = 0x1000, MAXIMUM_AT = 0x800 };

static uint64_t address_of(FeatureId id, Register which)
{
    return FIRST_PAGE + (uint64_t)id * PAGE_BYTES + (which == REGISTER_MAXIMUM ? MAXIMUM_AT : 0);
}

FeatureId feature_at(uint64_t address, Register *which)
{
    if (address < FIRST_PAGE || (address - FIRST_PAGE) / PAGE_BYTES >= FEATURE_COUNT)
        return F_None;
    FeatureId id = (FeatureId)((address - FIRST_PAGE) / PAGE_BYTES);
    *which = address % PAGE_BYTES == MAXIMUM_AT ? REGISTER_MAXIMUM : REGISTER_VALUE;
    return address == address_of(id, *which) && features[id].kind != CHUNK ? id : F_None;
}

int feature_choice(const Feature *feature, int index, char name[64], int64_t *value)
{
    int count = 0;
    for (const char *at = feature->choices; *at;) {
        size_t length = strcspn(at, " ="), whole = strcspn(at, " ");
        if (count == index) {
            snprintf(name, 64, "%.*s", (int)length, at);
            *value = at[length] == '=' ? strtoll(at + length + 1, NULL, 0) : count;
        }
        count++;
        at += whole + (at[whole] == ' ');
    }
    return count;
}

bool feature_has_choice(const Feature *feature, int64_t wanted)
{
    char name[64];
    int64_t value = 0;
    for (int i = 0; i < feature_choice(feature, i, name, &value); i++)
        if (value == wanted)
            return true;
    return false;
}

/* --- the description file (GenApi schema 1.1) --- */

typedef struct {
    char *text;
    size_t length, room;
} Page;

__attribute__((format(printf, 2, 3))) static void put(Page *page, const char *format, ...)
{
    for (;;) {
        va_list arguments;
        va_start(arguments, format);
        size_t left = page->room - page->length;
        int wanted = vsnprintf(page->text + page->length, left, format, arguments);
        va_end(arguments);
        if ((size_t)wanted < left) {
            page->length += (size_t)wanted;
            return;
        }
        page->room += page->room + (size_t)wanted;
        page->text = realloc(page->text, page->room);
        if (!page->text)
            abort();
    }
}

static const char *const ELEMENTS[] = {"Integer", "Float",     "Boolean", "Enumeration",
                                       "Command", "StringReg", "Integer"};
static const char *const VISIBILITIES[] = {"Beginner", "Expert", "Invisible"};

static void put_register(Page *page, FeatureId id, Register which)
{
    const Feature *feature = &features[id];
    bool is_float = feature->kind == FLOAT, is_chunk = feature->kind == CHUNK;
    const char *element = is_float ? "FloatReg" : "IntReg";
    const char *suffix = which == REGISTER_MAXIMUM ? "Max" : "";
    bool is_read_only = feature->access == RO || which == REGISTER_MAXIMUM;
    put(page, "<%s Name=\"%s%sRegister\"><Address>0x%llx</Address><Length>8</Length>", element,
        feature->name, suffix, is_chunk ? 0ull : (unsigned long long)address_of(id, which));
    put(page, "<AccessMode>%s</AccessMode><pPort>%s%s</pPort><Cachable>NoCache</Cachable>",
        is_read_only ? "RO" : "RW", is_chunk ? feature->name : "Device", is_chunk ? "Port" : "");
    put(page, "%s<Endianess>LittleEndian</Endianess></%s>\n", is_float ? "" : "<Sign>Signed</Sign>",
        element);
}

static void put_number(Page *page, const Feature *feature, const char *tag, double number)
{
    put(page, feature->kind == FLOAT ? "<%s>%.15g</%s>" : "<%s>%.0f</%s>", tag, number, tag);
}

static void put_range(Page *page, const Feature *feature)
{
    put_number(page, feature, "Min", feature->minimum);
    if (feature->maximum == BY_CAMERA)
        put(page, "<pMax>%sMaxRegister</pMax>", feature->name);
    else
        put_number(page, feature, "Max", feature->maximum);
    if (feature->increment > 0)
        put_number(page, feature, "Inc", feature->increment);
    if (*feature->unit)
        put(page, "<Unit>%s</Unit>", feature->unit);
    if (feature->kind == FLOAT)
        put(page, "<Representation>Linear</Representation>");
}

static void put_choices(Page *page, const Feature *feature)
{
    char name[64];
    int64_t value = 0;
    for (int i = 0; i < feature_choice(feature, i, name, &value); i++)
        put(page, "<EnumEntry Name=\"%s\"><Value>%lld</Value></EnumEntry>", name, (long long)value);
}

static void put_selected(Page *page, FeatureId selector)
{
    for (FeatureId id = 0; id < FEATURE_COUNT; id++)
        if (features[id].selector == selector)
            put(page, "<pSelected>%s</pSelected>", features[id].name);
}

/* What nodes of all kinds begin with. */
static void put_head(Page *page, const Feature *feature)
{
    put(page, "<%s Name=\"%s\" NameSpace=\"%s\"><ToolTip>%s</ToolTip>", ELEMENTS[feature->kind],
        feature->name, strncmp(feature->name, "Sim", 3) ? "Standard" : "Custom", feature->tooltip);
    put(page, "<Description>%s</Description><DisplayName>%s</DisplayName>", feature->tooltip,
        feature->name);
    put(page, "<Visibility>%s</Visibility>", VISIBILITIES[feature->visibility]);
    if (feature->access == LOCKED)
        put(page, "<pIsLocked>TLParamsLocked</pIsLocked>");
}

static void put_text(Page *page, FeatureId id)
{
    put_head(page, &features[id]);
    put(page, "<Address>0x%llx</Address><Length>%d</Length><AccessMode>%s</AccessMode>",
        (unsigned long long)address_of(id, REGISTER_VALUE), TEXT_BYTES,
        features[id].access == RO ? "RO" : "RW");
    put(page, "<pPort>Device</pPort><Cachable>NoCache</Cachable></StringReg>\n");
}

static void put_valued(Page *page, FeatureId id)
{
    const Feature *feature = &features[id];
    Kind kind = feature->kind;
    put_head(page, feature);
    if (kind == ENUMERATION)
        put_choices(page, feature);
    put(page, "<pValue>%sRegister</pValue>", feature->name);
    if (kind == INTEGER || kind == FLOAT || kind == CHUNK)
        put_range(page, feature);
    else if (kind == BOOLEAN)
        put(page, "<OnValue>1</OnValue><OffValue>0</OffValue>");
    else if (kind == COMMAND)
        put(page, "<CommandValue>1</CommandValue>");
    put_selected(page, id);
    put(page, "</%s>\n", ELEMENTS[kind]);
    put_register(page, id, REGISTER_VALUE);
    if (feature->maximum == BY_CAMERA)
        put_register(page, id, REGISTER_MAXIMUM);
    if (kind == CHUNK)
        put(page, "<Port Name=\"%sPort\"><ChunkID>%x</ChunkID></Port>\n", feature->name,
            (unsigned)id);
}

/* Categories stand in the table one after another. */
static void put_categories(Page *page)
{
    put(page, "<Category Name=\"Root\" NameSpace=\"Standard\">");
    for (FeatureId id = 0; id < FEATURE_COUNT; id++)
        if (id == 0 || strcmp(features[id].category, features[id - 1].category))
            put(page, "<pFeature>%s</pFeature>", features[id].category);
    for (FeatureId id = 0; id < FEATURE_COUNT; id++) {
        if (id == 0 || strcmp(features[id].category, features[id - 1].category))
            put(page, "</Category>\n<Category Name=\"%s\" NameSpace=\"%s\">", features[id].category,
                strncmp(features[id].category, "Sim", 3) ? "Standard" : "Custom");
        put(page, "<pFeature>%s</pFeature>", features[id].name);
    }
    put(page, "</Category>\n");
}

static void put_header(Page *page, const char *model)
{
    put(page, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    put(page, "<RegisterDescription ModelName=\"%s\" VendorName=\"%s\" ", model, VENDOR);
    put(page, "ToolTip=\"Line-scan camera simulator\" StandardNameSpace=\"None\" "
              "SchemaMajorVersion=\"1\" SchemaMinorVersion=\"1\" SchemaSubMinorVersion=\"0\" "
              "MajorVersion=\"1\" MinorVersion=\"0\" SubMinorVersion=\"0\" "
              "ProductGuid=\"6f1dbd2e-27d8-4d2b-8a55-5d1f1e6c7a01\" "
              "VersionGuid=\"6f1dbd2e-27d8-4d2b-8a55-5d1f1e6c7a02\" "
              "xmlns=\"http://www.genicam.org/GenApi/Version_1_1\" "
              "xmlns:xsi=\"http://www.w3.org/2001/XMLSchema-instance\" "
              "xsi:schemaLocation=\"http://www.genicam.org/GenApi/Version_1_1 "
              "http://www.genicam.org/GenApi/GenApiSchema_Version_1_1.xsd\">\n");
}

const char *description(size_t *length)
{
    static Page page;
    if (!page.text) {
        put_header(&page, "LineScanSimulator");
        put_categories(&page);
        for (FeatureId id = 0; id < FEATURE_COUNT; id++)
            (features[id].kind == TEXT ? put_text : put_valued)(&page, id);
        put(&page,
            "<Port Name=\"Device\" NameSpace=\"Standard\"></Port>\n</RegisterDescription>\n");
    }
    *length = page.length;
    return page.text;
}

char *describe_module(const char *feature, const char *id, const char *port, size_t *length)
{
    Page page = {0};
    put_header(&page, port);
    put(&page, "<Category Name=\"Root\"><pFeature>%s</pFeature></Category>\n", feature);
    put(&page, "<String Name=\"%s\" NameSpace=\"Standard\"><ToolTip>Unique id.</ToolTip>", feature);
    put(&page, "<ImposedAccessMode>RO</ImposedAccessMode><Value>%s</Value></String>\n", id);
    put(&page, "<Port Name=\"%s\"></Port>\n</RegisterDescription>\n", port);
    *length = page.length;
    return page.text;
}
