/* A GenTL consumer written from the standard alone (GenTL 1.6): it knows nothing of the producer.
 *
 *     gentl_consumer FILE.cti SERIAL FRAMES CYCLES [FEATURE=VALUE ...]
 *
 * Each cycle lists the devices, opens one, reads its description, sets features, streams, closes;
 * every other one without stopping first.
 * Prints one line a cycle: frames, incomplete ones, lost ones, and the memory held afterwards.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void *Handle;
typedef int32_t Error;

static void *library;

/* A function of the producer, by name; its arguments are the standard's. */
#define CALL(name, types, ...)                                                                     \
    do {                                                                                           \
        Error(*function) types;                                                                    \
        *(void **)&function = dlsym(library, #name);                                               \
        Error code = function ? function(__VA_ARGS__) : -1;                                        \
        if (code)                                                                                  \
            complain(#name, code);                                                                 \
    } while (0)

static void complain(const char *name, Error code)
{
    char text[512] = "";
    size_t size = sizeof text;
    Error (*last)(Error *, char *, size_t *);
    *(void **)&last = dlsym(library, "GCGetLastError");
    if (last)
        last(NULL, text, &size);
    fprintf(stderr, "%s: error %d: %s\n", name, code, text);
    exit(1);
}

static char *read_description(Handle port)
{
    char url[256];
    size_t size = sizeof url;
    unsigned long long address, length;
    CALL(GCGetPortURL, (Handle, char *, size_t *), port, url, &size);
    if (sscanf(url, "Local:///%*[^;];%llx;%llx", &address, &length) != 2)
        complain(url, -1);
    char *xml = calloc(1, length + 1);
    size = length;
    CALL(GCReadPort, (Handle, uint64_t, void *, size_t *), port, address, xml, &size);
    return xml;
}

/* The address of a feature's register, and its element: IntReg, FloatReg or StringReg. */
static uint64_t find_register(const char *xml, const char *feature, char *element)
{
    const char *const forms[] = {"<IntReg Name=\"%sRegister\"", "<FloatReg Name=\"%sRegister\"",
                                 "<StringReg Name=\"%s\""};
    char text[128];
    for (int i = 0; i < 3; i++) {
        snprintf(text, sizeof text, forms[i], feature);
        const char *at = strstr(xml, text);
        if (!at)
            continue;
        *element = text[1];
        return strtoull(strstr(at, "<Address>") + strlen("<Address>"), NULL, 16);
    }
    complain(feature, -1);
    return 0;
}

static void set(Handle port, const char *xml, const char *feature, const char *value)
{
    char element, bytes[1024] = "";
    uint64_t address = find_register(xml, feature, &element);
    size_t size = element == 'S' ? sizeof bytes : 8;
    if (element == 'I')
        *(int64_t *)(void *)bytes = strtoll(value, NULL, 0);
    else if (element == 'F')
        *(double *)(void *)bytes = strtod(value, NULL);
    else
        snprintf(bytes, sizeof bytes, "%s", value);
    CALL(GCWritePort, (Handle, uint64_t, const void *, size_t *), port, address, bytes, &size);
}

static int64_t get(Handle port, const char *xml, const char *feature)
{
    char element;
    int64_t value = 0;
    size_t size = sizeof value;
    uint64_t address = find_register(xml, feature, &element);
    CALL(GCReadPort, (Handle, uint64_t, void *, size_t *), port, address, &value, &size);
    return value;
}

static uint64_t info(Handle stream, Handle buffer, int32_t command)
{
    uint64_t value = 0;
    int32_t type;
    size_t size = sizeof value;
    CALL(DSGetBufferInfo, (Handle, Handle, int32_t, int32_t *, void *, size_t *), stream, buffer,
         command, &type, &value, &size);
    return value;
}

static void stream_frames(Handle stream, Handle event, uint64_t frames)
{
    enum { FRAME_ID = 16, IS_INCOMPLETE = 7, SIZE_FILLED = 9, BASE = 0, TIMEOUT_MS = 5000 };
    uint64_t incomplete = 0, last = 0, lost = 0, sum = 0;
    for (uint64_t i = 0; i < frames; i++) {
        Handle data[2]; /* EVENT_NEW_BUFFER_DATA */
        size_t size = sizeof data;
        CALL(EventGetData, (Handle, void *, size_t *, uint64_t), event, data, &size, TIMEOUT_MS);
        uint64_t id = info(stream, data[0], FRAME_ID), filled = info(stream, data[0], SIZE_FILLED);
        const uint8_t *pixels = (const uint8_t *)(uintptr_t)info(stream, data[0], BASE);
        for (uint64_t k = 0; k < filled; k += 97)
            sum += pixels[k];
        incomplete += info(stream, data[0], IS_INCOMPLETE);
        lost += i && id > last ? id - last - 1 : 0;
        last = id;
        CALL(DSQueueBuffer, (Handle, Handle), stream, data[0]);
    }
    printf("frames=%llu incomplete=%llu lost=%llu sum=%llu", (unsigned long long)frames,
           (unsigned long long)incomplete, (unsigned long long)lost, (unsigned long long)sum);
}

/* A rude consumer takes its buffers away while frames are made, and closes without a word. */
static void acquire(Handle port, Handle stream, const char *xml, uint64_t frames, int is_rude)
{
    enum { BUFFERS = 8, NEW_BUFFER = 1, ALL_DISCARD = 4 };
    Handle event, buffers[BUFFERS];
    size_t payload = (size_t)get(port, xml, "PayloadSize");
    CALL(GCRegisterEvent, (Handle, int32_t, Handle *), stream, NEW_BUFFER, &event);
    for (int i = 0; i < BUFFERS; i++) {
        void *memory = malloc(payload);
        CALL(DSAnnounceBuffer, (Handle, void *, size_t, void *, Handle *), stream, memory, payload,
             memory, &buffers[i]);
        CALL(DSQueueBuffer, (Handle, Handle), stream, buffers[i]);
    }
    set(port, xml, "TLParamsLocked", "1");
    CALL(DSStartAcquisition, (Handle, int32_t, uint64_t), stream, 0, UINT64_MAX);
    set(port, xml, "AcquisitionStart", "1");
    stream_frames(stream, event, frames);
    if (!is_rude) {
        set(port, xml, "AcquisitionStop", "1");
        set(port, xml, "TLParamsLocked", "0");
        CALL(DSStopAcquisition, (Handle, int32_t), stream, 0);
        CALL(DSFlushQueue, (Handle, int32_t), stream, ALL_DISCARD);
    }
    for (int i = 0; i < BUFFERS; i++) {
        void *memory, *private;
        CALL(DSRevokeBuffer, (Handle, Handle, void **, void **), stream, buffers[i], &memory,
             &private);
        free(private);
    }
    if (!is_rude)
        CALL(GCUnregisterEvent, (Handle, int32_t), stream, NEW_BUFFER);
}

static void use_device(Handle interface, const char *serial, uint64_t frames, char **settings,
                       int is_rude)
{
    enum { EXCLUSIVE = 4 };
    Handle device, port, stream;
    char id[128];
    size_t size = sizeof id;
    CALL(IFOpenDevice, (Handle, const char *, int32_t, Handle *), interface, serial, EXCLUSIVE,
         &device);
    CALL(DevGetPort, (Handle, Handle *), device, &port);
    char *xml = read_description(port);
    for (; *settings; settings++) {
        char feature[128];
        const char *value = strchr(*settings, '=') + 1;
        snprintf(feature, sizeof feature, "%.*s", (int)(value - *settings - 1), *settings);
        set(port, xml, feature, value);
    }
    CALL(DevGetDataStreamID, (Handle, uint32_t, char *, size_t *), device, 0, id, &size);
    CALL(DevOpenDataStream, (Handle, const char *, Handle *), device, id, &stream);
    acquire(port, stream, xml, frames, is_rude);
    if (!is_rude)
        CALL(DSClose, (Handle), stream);
    CALL(DevClose, (Handle), device);
    free(xml);
}

static void cycle(const char *serial, uint64_t frames, char **settings, int is_rude)
{
    Handle system, interface;
    uint32_t count = 0;
    uint8_t is_changed;
    char id[128];
    size_t size = sizeof id;
    CALL(GCInitLib, (void));
    CALL(TLOpen, (Handle *), &system);
    CALL(TLUpdateInterfaceList, (Handle, uint8_t *, uint64_t), system, &is_changed, 100);
    CALL(TLGetInterfaceID, (Handle, uint32_t, char *, size_t *), system, 0, id, &size);
    CALL(TLOpenInterface, (Handle, const char *, Handle *), system, id, &interface);
    CALL(IFUpdateDeviceList, (Handle, uint8_t *, uint64_t), interface, &is_changed, 100);
    CALL(IFGetNumDevices, (Handle, uint32_t *), interface, &count);
    for (uint32_t i = 0; i < count; i++) {
        size = sizeof id;
        CALL(IFGetDeviceID, (Handle, uint32_t, char *, size_t *), interface, i, id, &size);
    }
    printf("devices=%u ", count);
    use_device(interface, serial, frames, settings, is_rude);
    CALL(IFClose, (Handle), interface);
    CALL(TLClose, (Handle), system);
    CALL(GCCloseLib, (void));
}

static long resident_kb(void)
{
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (!file || fscanf(file, "%*d %ld", &pages) != 1)
        complain("/proc/self/statm", -1);
    fclose(file);
    return pages * 4;
}

int main(int count, char **arguments)
{
    if (count < 5 || !(library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL))) {
        fprintf(stderr, "gentl_consumer FILE.cti SERIAL FRAMES CYCLES [FEATURE=VALUE ...]\n%s\n",
                count < 5 ? "" : dlerror());
        return 2;
    }
    for (int left = atoi(arguments[4]); left > 0; left--) {
        cycle(arguments[2], strtoull(arguments[3], NULL, 10), arguments + 5, left % 2);
        printf(" rss_kb=%ld\n", resident_kb());
    }
    dlclose(library);
    return 0;
}
