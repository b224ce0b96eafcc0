/* The GenTL 1.6 entry points: one system, one interface, the line-scan cameras behind it.
 *
 * Handles are addresses within static tables, so that a stale or foreign one is known by looking it
 * up, never by following it. The library may be initialised and its modules opened more than once,
 * as programs with several consumers do; a device may not. */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "camera.h"

#define TL_TYPE "Custom"
#define INTERFACE_ID "vqi-belt"
#define STREAM_ID "vqi-stream"
#define SYSTEM_ID VENDOR " line-scan simulator"

typedef enum { DEVICE, PORT, STREAM, EVENT, PARTS } Part;

typedef struct {
    char is_open[PARTS]; /* their addresses are the handles */
    Camera *camera;
    int lock;
    char id[64]; /* serial under which it was opened */
} Device;

enum { DEVICE_COUNT = 2 };
static const char *const SERIALS[DEVICE_COUNT] = {VENDOR "-LS-1", VENDOR "-LS-2"};
static Device devices[DEVICE_COUNT];
static int library_users, system_users, interface_users;
static pthread_mutex_t modules = PTHREAD_MUTEX_INITIALIZER;

/* --- errors and answers --- */

static _Thread_local GC_ERROR last_error;
static _Thread_local char last_text[768];

GC_ERROR fail(GC_ERROR code, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_text, sizeof last_text, format, arguments);
    va_end(arguments);
    return last_error = code;
}

/* Where an answer goes: a consumer asks for the size first, with no buffer. */
typedef struct {
    INFO_DATATYPE *type;
    void *buffer;
    size_t *size;
} Reply;

static GC_ERROR answer(Reply to, INFO_DATATYPE type, const void *data, size_t bytes)
{
    if (!to.size)
        return fail(GC_ERR_INVALID_PARAMETER, "no place for the size of the answer");
    if (to.type)
        *to.type = type;
    if (to.buffer && *to.size < bytes)
        return fail(GC_ERR_BUFFER_TOO_SMALL, "the answer has %zu bytes, the buffer %zu", bytes,
                    *to.size);
    if (to.buffer)
        memcpy(to.buffer, data, bytes);
    *to.size = bytes;
    return GC_ERR_SUCCESS;
}

static GC_ERROR answer_text(Reply to, const char *text)
{
    return answer(to, INFO_DATATYPE_STRING, text, strlen(text) + 1);
}

static GC_ERROR answer_size(Reply to, size_t number)
{
    return answer(to, INFO_DATATYPE_SIZET, &number, sizeof number);
}

static GC_ERROR answer_u64(Reply to, uint64_t number)
{
    return answer(to, INFO_DATATYPE_UINT64, &number, sizeof number);
}

static GC_ERROR answer_u32(Reply to, uint32_t number)
{
    return answer(to, INFO_DATATYPE_UINT32, &number, sizeof number);
}

static GC_ERROR answer_i32(Reply to, int32_t number)
{
    return answer(to, INFO_DATATYPE_INT32, &number, sizeof number);
}

static GC_ERROR answer_bool(Reply to, bool is_true)
{
    bool8_t flag = is_true;
    return answer(to, INFO_DATATYPE_BOOL8, &flag, sizeof flag);
}

static GC_ERROR answer_pointer(Reply to, void *pointer)
{
    return answer(to, INFO_DATATYPE_PTR, &pointer, sizeof pointer);
}

static GC_ERROR no_such_info(int32_t command)
{
    return fail(GC_ERR_NOT_IMPLEMENTED, "information %d is not given", command);
}

static GC_ERROR put_count(uint32_t *to, uint32_t count)
{
    if (!to)
        return fail(GC_ERR_INVALID_PARAMETER, "no place for the number");
    *to = count;
    return GC_ERR_SUCCESS;
}

static GC_ERROR put_handle(void **to, void *handle)
{
    if (!to)
        return fail(GC_ERR_INVALID_PARAMETER, "no place for the handle");
    *to = handle;
    return GC_ERR_SUCCESS;
}

/* --- handles --- */

static GC_ERROR check(const void *handle, const int *users)
{
    if (!library_users)
        return fail(GC_ERR_NOT_INITIALIZED, "GCInitLib was not called");
    if (!users || handle != users || !*users)
        return fail(GC_ERR_INVALID_HANDLE, "%p is no handle of an open module of this kind",
                    handle);
    return GC_ERR_SUCCESS;
}

static GC_ERROR check_system(const void *handle) { return check(handle, &system_users); }
static GC_ERROR check_interface(const void *handle) { return check(handle, &interface_users); }

/* The device whose part has this handle; NULL, and last_error is set. */
static Device *find(const void *handle, Part part)
{
    for (int i = 0; library_users && i < DEVICE_COUNT; i++)
        if (handle == &devices[i].is_open[part] && devices[i].is_open[part])
            return &devices[i];
    check(handle, NULL);
    return NULL;
}

#define FIND(device, handle, part)                                                                 \
    Device *device = find(handle, part);                                                           \
    if (!device)                                                                                   \
    return last_error

#define TRY(call)                                                                                  \
    do {                                                                                           \
        GC_ERROR result_ = (call);                                                                 \
        if (result_ != GC_ERR_SUCCESS)                                                             \
            return result_;                                                                        \
    } while (0)

/* --- devices across processes --- */

/* A file of a device in the user's runtime folder; "" where that folder is somebody else's. */
static void runtime_path(char path[256], int index, const char *suffix)
{
    struct stat status;
    const char *runtime = getenv("XDG_RUNTIME_DIR");
    if (runtime && *runtime == '/')
        snprintf(path, 256, "%.120s/vqi-linescan", runtime);
    else
        snprintf(path, 256, "/tmp/vqi-linescan-%u", (unsigned)getuid());
    mkdir(path, 0700);
    size_t length = strlen(path);
    if (lstat(path, &status) < 0 || !S_ISDIR(status.st_mode) || status.st_uid != geteuid())
        *path = 0;
    else
        snprintf(path + length, 256 - length, "/%s.%s", SERIALS[index], suffix);
}

static int open_lock_file(int index)
{
    char path[256];
    runtime_path(path, index, "lock");
    return open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
}

static bool lock_device(int index)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    devices[index].lock = open_lock_file(index);
    if (devices[index].lock < 0)
        return false;
    if (fcntl(devices[index].lock, F_OFD_SETLK, &whole) == 0)
        return true;
    int why = errno;
    close(devices[index].lock);
    errno = why;
    return false;
}

static bool is_locked_elsewhere(int index)
{
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    int file = open_lock_file(index);
    if (file < 0)
        return true;
    bool is_free = fcntl(file, F_OFD_GETLK, &whole) == 0 && whole.l_type == F_UNLCK;
    close(file);
    return !is_free;
}

/* The serial found now: another one for a while after SimOtherSerialFrames. */
static void find_serial(int index, char serial[64])
{
    char path[256];
    long long until = 0;
    runtime_path(path, index, "other");
    FILE *file = fopen(path, "re");
    if (file) {
        if (fscanf(file, "%lld", &until) != 1)
            until = 0;
        fclose(file);
    }
    int64_t now = now_ns();
    /* A time beyond the longest duration is from before a restart of this computer. */
    bool is_other = now < until && until - now <= 3600ll * 1000000000;
    snprintf(serial, 64, "%s%s", SERIALS[index], is_other ? "-B" : "");
}

/* The device with this id; -1, and last_error is set. */
static int find_device(const char *id)
{
    char serial[64];
    for (int i = 0; id && i < DEVICE_COUNT; i++) {
        find_serial(i, serial);
        if (!strcmp(id, serial) || (devices[i].camera && !strcmp(id, devices[i].id)))
            return i;
    }
    fail(GC_ERR_INVALID_ID, "no device %s", id ? id : "(null)");
    return -1;
}

static int32_t access_status(int index)
{
    Camera *camera = devices[index].camera;
    if (!camera)
        return is_locked_elsewhere(index) ? DEVICE_ACCESS_STATUS_BUSY
                                          : DEVICE_ACCESS_STATUS_READWRITE;
    pthread_mutex_lock(&camera->lock);
    bool is_gone = camera->is_gone;
    pthread_mutex_unlock(&camera->lock);
    return is_gone ? DEVICE_ACCESS_STATUS_NOACCESS : DEVICE_ACCESS_STATUS_OPEN_READWRITE;
}

static GC_ERROR device_info(int index, DEVICE_INFO_CMD command, Reply reply)
{
    char serial[64], name[128];
    if (devices[index].camera)
        snprintf(serial, sizeof serial, "%s", devices[index].id);
    else
        find_serial(index, serial);
    switch (command) {
    case DEVICE_INFO_ID:
    case DEVICE_INFO_SERIAL_NUMBER: return answer_text(reply, serial);
    case DEVICE_INFO_VENDOR: return answer_text(reply, VENDOR);
    case DEVICE_INFO_MODEL: return answer_text(reply, features[F_DeviceModelName].choices);
    case DEVICE_INFO_TLTYPE: return answer_text(reply, TL_TYPE);
    case DEVICE_INFO_DISPLAYNAME:
        snprintf(name, sizeof name, "%s %s", features[F_DeviceModelName].choices, serial);
        return answer_text(reply, name);
    case DEVICE_INFO_ACCESS_STATUS: return answer_i32(reply, access_status(index));
    case DEVICE_INFO_USER_DEFINED_NAME: return answer_text(reply, "");
    case DEVICE_INFO_VERSION: return answer_text(reply, PRODUCER_VERSION);
    case DEVICE_INFO_TIMESTAMP_FREQUENCY: return answer_u64(reply, 1000000000);
    default: return no_such_info(command);
    }
}

/* --- closing --- */

/* No frame is begun from then on, and the one begun is dropped: its buffer is free. */
static void end_grabbing(Camera *camera)
{
    pthread_mutex_lock(&camera->stream.lock);
    camera->stream.is_grabbing = false;
    pthread_mutex_unlock(&camera->stream.lock);
    camera_release_buffer(camera);
}

static void close_stream(Device *device)
{
    Stream *stream = &device->camera->stream;
    if (!device->is_open[STREAM])
        return;
    device->is_open[STREAM] = device->is_open[EVENT] = 0;
    stream_end_waiting(stream);
    end_grabbing(device->camera);
    while (stream->announced)
        stream_revoke(stream, stream->announced);
}

static void close_device(Device *device)
{
    if (!device->is_open[DEVICE])
        return;
    close_stream(device);
    device->is_open[DEVICE] = device->is_open[PORT] = 0;
    camera_close(device->camera);
    device->camera = NULL;
    close(device->lock);
}

static void close_interface(void)
{
    for (int i = 0; i < DEVICE_COUNT; i++)
        close_device(&devices[i]);
    interface_users = 0;
}

/* --- library --- */

GC_API GCInitLib(void)
{
    size_t length;
    pthread_mutex_lock(&modules);
    library_users++;
    description(&length);
    pthread_mutex_unlock(&modules);
    return GC_ERR_SUCCESS;
}

GC_API GCCloseLib(void)
{
    if (!library_users)
        return fail(GC_ERR_NOT_INITIALIZED, "GCInitLib was not called");
    pthread_mutex_lock(&modules);
    if (--library_users == 0) {
        close_interface();
        system_users = 0;
    }
    pthread_mutex_unlock(&modules);
    return GC_ERR_SUCCESS;
}

GC_API GCGetLastError(GC_ERROR *code, char *text, size_t *size)
{
    if (code)
        *code = last_error;
    return answer_text((Reply){NULL, text, size}, last_error ? last_text : "no error");
}

GC_API GCGetInfo(TL_INFO_CMD command, INFO_DATATYPE *type, void *buffer, size_t *size)
{
    Reply reply = {type, buffer, size};
    switch (command) {
    case TL_INFO_ID:
    case TL_INFO_DISPLAYNAME: return answer_text(reply, SYSTEM_ID);
    case TL_INFO_VENDOR: return answer_text(reply, VENDOR);
    case TL_INFO_MODEL: return answer_text(reply, features[F_DeviceModelName].choices);
    case TL_INFO_VERSION: return answer_text(reply, PRODUCER_VERSION);
    case TL_INFO_TLTYPE: return answer_text(reply, TL_TYPE);
    case TL_INFO_NAME:
    case TL_INFO_PATHNAME: return answer_text(reply, "vqi-linescan.cti");
    case TL_INFO_CHAR_ENCODING: return answer_i32(reply, TL_CHAR_ENCODING_UTF8);
    case TL_INFO_GENTL_VER_MAJOR: return answer_u32(reply, 1);
    case TL_INFO_GENTL_VER_MINOR: return answer_u32(reply, 6);
    default: return no_such_info(command);
    }
}

/* --- ports --- */

typedef enum { SYSTEM, INTERFACE, LOCAL_DEVICE, DATA_STREAM, REMOTE_DEVICE, NO_MODULE } Module;

static const struct {
    const char *name, *port, *id_feature;
} MODULES[NO_MODULE] = {
    [SYSTEM] = {"TLSystem", "TLPort", "TLID"},
    [INTERFACE] = {"TLInterface", "InterfacePort", "InterfaceID"},
    [LOCAL_DEVICE] = {"TLDevice", "DevicePort", "DeviceID"},
    [DATA_STREAM] = {"TLDataStream", "StreamPort", "StreamID"},
    [REMOTE_DEVICE] = {"TLRemoteDevice", "Device", "DeviceSerialNumber"},
};

/* Which module a handle is of, and its id; NO_MODULE, and last_error is set. */
static Module module_of(PORT_HANDLE port, const char **id)
{
    const Part parts[] = {PORT, DEVICE, STREAM};
    const Module kinds[] = {REMOTE_DEVICE, LOCAL_DEVICE, DATA_STREAM};
    for (int i = 0; i < 3; i++) {
        Device *device = find(port, parts[i]);
        *id = !device ? NULL : parts[i] == STREAM ? STREAM_ID : device->id;
        if (device)
            return kinds[i];
    }
    if (check_interface(port) == GC_ERR_SUCCESS) {
        *id = INTERFACE_ID;
        return INTERFACE;
    }
    *id = SYSTEM_ID;
    return check_system(port) == GC_ERR_SUCCESS ? SYSTEM : NO_MODULE;
}

/* Of the modules that are not the remote device, only the description can be read. */
static GC_ERROR read_module(Module module, const char *id, uint64_t address, void *buffer,
                            size_t *size)
{
    size_t length;
    char *text = describe_module(MODULES[module].id_feature, id, MODULES[module].port, &length);
    uint64_t from = address - DESCRIPTION_ADDRESS;
    bool is_there = address >= DESCRIPTION_ADDRESS && from < length;
    if (is_there) {
        *size = *size < length - from ? *size : length - from;
        memcpy(buffer, text + from, *size);
    }
    free(text);
    return is_there ? GC_ERR_SUCCESS
                    : fail(GC_ERR_INVALID_ADDRESS, "%s has no registers", MODULES[module].name);
}

GC_API GCReadPort(PORT_HANDLE port, uint64_t address, void *buffer, size_t *size)
{
    const char *id;
    Module module = module_of(port, &id);
    if (module == NO_MODULE)
        return last_error;
    if (!buffer || !size)
        return fail(GC_ERR_INVALID_PARAMETER, "no place for what is read");
    if (module != REMOTE_DEVICE)
        return read_module(module, id, address, buffer, size);
    return camera_read(find(port, PORT)->camera, address, buffer, size);
}

GC_API GCWritePort(PORT_HANDLE port, uint64_t address, const void *buffer, size_t *size)
{
    FIND(device, port, PORT);
    if (!buffer || !size)
        return fail(GC_ERR_INVALID_PARAMETER, "nothing to write");
    return camera_write(device->camera, address, buffer, *size);
}

static GC_ERROR access_each(PORT_HANDLE port, PORT_REGISTER_STACK_ENTRY *entries, size_t *count,
                            bool is_write)
{
    if (!entries || !count)
        return fail(GC_ERR_INVALID_PARAMETER, "no entries");
    for (size_t i = 0; i < *count; i++) {
        PORT_REGISTER_STACK_ENTRY *entry = &entries[i];
        size_t size = entry->Size;
        GC_ERROR result = is_write ? GCWritePort(port, entry->Address, entry->pBuffer, &size)
                                   : GCReadPort(port, entry->Address, entry->pBuffer, &size);
        if (result != GC_ERR_SUCCESS) {
            *count = i;
            return result;
        }
    }
    return GC_ERR_SUCCESS;
}

GC_API GCReadPortStacked(PORT_HANDLE port, PORT_REGISTER_STACK_ENTRY *entries, size_t *count)
{
    return access_each(port, entries, count, false);
}

GC_API GCWritePortStacked(PORT_HANDLE port, PORT_REGISTER_STACK_ENTRY *entries, size_t *count)
{
    return access_each(port, entries, count, true);
}

static size_t description_length(Module module, const char *id)
{
    size_t length;
    if (module == REMOTE_DEVICE)
        description(&length);
    else
        free(describe_module(MODULES[module].id_feature, id, MODULES[module].port, &length));
    return length;
}

GC_API GCGetNumPortURLs(PORT_HANDLE port, uint32_t *count)
{
    const char *id;
    return module_of(port, &id) == NO_MODULE ? last_error : put_count(count, 1);
}

GC_API GCGetPortURL(PORT_HANDLE port, char *url, size_t *size)
{
    return GCGetPortURLInfo(port, 0, URL_INFO_URL, NULL, url, size);
}

GC_API GCGetPortURLInfo(PORT_HANDLE port, uint32_t index, URL_INFO_CMD command, INFO_DATATYPE *type,
                        void *buffer, size_t *size)
{
    Reply reply = {type, buffer, size};
    char file[32], url[96];
    const char *id;
    Module module = module_of(port, &id);
    if (module == NO_MODULE)
        return last_error;
    if (index)
        return fail(GC_ERR_INVALID_INDEX, "there is one URL, not %u", index + 1);
    size_t length = description_length(module, id);
    snprintf(file, sizeof file, "vqi-%s.xml", MODULES[module].name);
    snprintf(url, sizeof url, "Local:///%s;%x;%zx?SchemaVersion=1.1.0", file, DESCRIPTION_ADDRESS,
             length);
    switch (command) {
    case URL_INFO_URL: return answer_text(reply, url);
    case URL_INFO_SCHEMA_VER_MAJOR:
    case URL_INFO_SCHEMA_VER_MINOR:
    case URL_INFO_FILE_VER_MAJOR: return answer_i32(reply, 1);
    case URL_INFO_FILE_VER_MINOR:
    case URL_INFO_FILE_VER_SUBMINOR: return answer_i32(reply, 0);
    case URL_INFO_FILE_REGISTER_ADDRESS: return answer_u64(reply, DESCRIPTION_ADDRESS);
    case URL_INFO_FILE_SIZE: return answer_u64(reply, length);
    case URL_INFO_SCHEME: return answer_i32(reply, URL_SCHEME_LOCAL);
    case URL_INFO_FILENAME: return answer_text(reply, file);
    default: return no_such_info(command);
    }
}

GC_API GCGetPortInfo(PORT_HANDLE port, PORT_INFO_CMD command, INFO_DATATYPE *type, void *buffer,
                     size_t *size)
{
    Reply reply = {type, buffer, size};
    const char *id;
    Module module = module_of(port, &id);
    if (module == NO_MODULE)
        return last_error;
    switch (command) {
    case PORT_INFO_ID: return answer_text(reply, id);
    case PORT_INFO_VENDOR: return answer_text(reply, VENDOR);
    case PORT_INFO_MODEL: return answer_text(reply, features[F_DeviceModelName].choices);
    case PORT_INFO_TLTYPE: return answer_text(reply, TL_TYPE);
    case PORT_INFO_MODULE: return answer_text(reply, MODULES[module].name);
    case PORT_INFO_LITTLE_ENDIAN:
    case PORT_INFO_ACCESS_READ: return answer_bool(reply, true);
    case PORT_INFO_BIG_ENDIAN:
    case PORT_INFO_ACCESS_NA:
    case PORT_INFO_ACCESS_NI: return answer_bool(reply, false);
    case PORT_INFO_ACCESS_WRITE: return answer_bool(reply, module == REMOTE_DEVICE);
    case PORT_INFO_VERSION: return answer_text(reply, PRODUCER_VERSION);
    case PORT_INFO_PORTNAME: return answer_text(reply, MODULES[module].port);
    default: return no_such_info(command);
    }
}

/* --- events --- */

GC_API GCRegisterEvent(EVENTSRC_HANDLE source, EVENT_TYPE type, EVENT_HANDLE *event)
{
    if (type != EVENT_NEW_BUFFER)
        return fail(GC_ERR_NOT_IMPLEMENTED, "event %d is never fired", type);
    FIND(device, source, STREAM);
    if (device->is_open[EVENT])
        return fail(GC_ERR_RESOURCE_IN_USE, "the event is registered already");
    TRY(put_handle(event, &device->is_open[EVENT]));
    device->is_open[EVENT] = 1;
    return GC_ERR_SUCCESS;
}

GC_API GCUnregisterEvent(EVENTSRC_HANDLE source, EVENT_TYPE type)
{
    FIND(device, source, STREAM);
    if (type != EVENT_NEW_BUFFER || !device->is_open[EVENT])
        return fail(GC_ERR_INVALID_PARAMETER, "event %d is not registered", type);
    device->is_open[EVENT] = 0;
    return GC_ERR_SUCCESS;
}

GC_API EventGetData(EVENT_HANDLE event, void *buffer, size_t *size, uint64_t timeout_ms)
{
    Buffer *filled;
    FIND(device, event, EVENT);
    if (!buffer || !size || *size < sizeof(EVENT_NEW_BUFFER_DATA))
        return fail(GC_ERR_BUFFER_TOO_SMALL, "an event takes %zu bytes",
                    sizeof(EVENT_NEW_BUFFER_DATA));
    GC_ERROR result = stream_wait(&device->camera->stream, timeout_ms, &filled);
    if (result != GC_ERR_SUCCESS)
        return fail(result,
                    result == GC_ERR_TIMEOUT ? "no frame within the time" : "EventKill was called");
    EVENT_NEW_BUFFER_DATA data = {filled, filled->user_pointer};
    memcpy(buffer, &data, sizeof data);
    *size = sizeof data;
    return GC_ERR_SUCCESS;
}

GC_API EventGetDataInfo(EVENT_HANDLE event, const void *in, size_t in_size,
                        EVENT_DATA_INFO_CMD command, INFO_DATATYPE *type, void *buffer,
                        size_t *size)
{
    Reply reply = {type, buffer, size};
    EVENT_NEW_BUFFER_DATA data;
    FIND(device, event, EVENT);
    if (!in || in_size < sizeof data)
        return fail(GC_ERR_INVALID_PARAMETER, "that is no data of this event");
    memcpy(&data, in, sizeof data);
    if (command == EVENT_DATA_ID)
        return answer_pointer(reply, data.BufferHandle);
    if (command == EVENT_DATA_VALUE)
        return answer_pointer(reply, data.pUserPointer);
    return no_such_info(command);
}

GC_API EventGetInfo(EVENT_HANDLE event, EVENT_INFO_CMD command, INFO_DATATYPE *type, void *buffer,
                    size_t *size)
{
    Reply reply = {type, buffer, size};
    FIND(device, event, EVENT);
    Stream *stream = &device->camera->stream;
    pthread_mutex_lock(&stream->lock);
    size_t waiting = stream->output.count;
    uint64_t fired = stream->fired;
    pthread_mutex_unlock(&stream->lock);
    switch (command) {
    case EVENT_EVENT_TYPE: return answer_i32(reply, EVENT_NEW_BUFFER);
    case EVENT_NUM_IN_QUEUE: return answer_size(reply, waiting);
    case EVENT_NUM_FIRED: return answer_u64(reply, fired);
    case EVENT_SIZE_MAX: return answer_size(reply, sizeof(EVENT_NEW_BUFFER_DATA));
    case EVENT_INFO_DATA_SIZE_MAX: return answer_size(reply, sizeof(void *));
    default: return no_such_info(command);
    }
}

GC_API EventFlush(EVENT_HANDLE event)
{
    FIND(device, event, EVENT);
    return stream_flush(&device->camera->stream, ACQ_QUEUE_OUTPUT_DISCARD);
}

GC_API EventKill(EVENT_HANDLE event)
{
    FIND(device, event, EVENT);
    Stream *stream = &device->camera->stream;
    pthread_mutex_lock(&stream->lock);
    stream->is_killed = true;
    pthread_cond_broadcast(&stream->filled);
    pthread_mutex_unlock(&stream->lock);
    return GC_ERR_SUCCESS;
}

/* --- system --- */

GC_API TLOpen(TL_HANDLE *system)
{
    if (!library_users)
        return fail(GC_ERR_NOT_INITIALIZED, "GCInitLib was not called");
    TRY(put_handle(system, &system_users));
    system_users++;
    return GC_ERR_SUCCESS;
}

GC_API TLClose(TL_HANDLE system)
{
    TRY(check_system(system));
    pthread_mutex_lock(&modules);
    if (--system_users == 0)
        close_interface();
    pthread_mutex_unlock(&modules);
    return GC_ERR_SUCCESS;
}

GC_API TLGetInfo(TL_HANDLE system, TL_INFO_CMD command, INFO_DATATYPE *type, void *buffer,
                 size_t *size)
{
    TRY(check_system(system));
    return GCGetInfo(command, type, buffer, size);
}

GC_API TLGetNumInterfaces(TL_HANDLE system, uint32_t *count)
{
    TRY(check_system(system));
    return put_count(count, 1);
}

GC_API TLGetInterfaceID(TL_HANDLE system, uint32_t index, char *id, size_t *size)
{
    TRY(check_system(system));
    if (index)
        return fail(GC_ERR_INVALID_INDEX, "there is one interface, not %u", index + 1);
    return answer_text((Reply){NULL, id, size}, INTERFACE_ID);
}

static GC_ERROR interface_info(INTERFACE_INFO_CMD command, Reply reply)
{
    switch (command) {
    case INTERFACE_INFO_ID: return answer_text(reply, INTERFACE_ID);
    case INTERFACE_INFO_DISPLAYNAME: return answer_text(reply, "Simulated belt");
    case INTERFACE_INFO_TLTYPE: return answer_text(reply, TL_TYPE);
    default: return no_such_info(command);
    }
}

static GC_ERROR check_interface_id(const char *id)
{
    if (!id || strcmp(id, INTERFACE_ID))
        return fail(GC_ERR_INVALID_ID, "no interface %s", id ? id : "(null)");
    return GC_ERR_SUCCESS;
}

GC_API TLGetInterfaceInfo(TL_HANDLE system, const char *id, INTERFACE_INFO_CMD command,
                          INFO_DATATYPE *type, void *buffer, size_t *size)
{
    TRY(check_system(system));
    TRY(check_interface_id(id));
    return interface_info(command, (Reply){type, buffer, size});
}

GC_API TLOpenInterface(TL_HANDLE system, const char *id, IF_HANDLE *interface)
{
    TRY(check_system(system));
    TRY(check_interface_id(id));
    TRY(put_handle(interface, &interface_users));
    interface_users++;
    return GC_ERR_SUCCESS;
}

GC_API TLUpdateInterfaceList(TL_HANDLE system, bool8_t *is_changed, uint64_t timeout_ms)
{
    (void)timeout_ms;
    TRY(check_system(system));
    if (is_changed)
        *is_changed = 0;
    return GC_ERR_SUCCESS;
}

/* --- interface --- */

GC_API IFClose(IF_HANDLE interface)
{
    TRY(check_interface(interface));
    pthread_mutex_lock(&modules);
    if (--interface_users == 0)
        close_interface();
    pthread_mutex_unlock(&modules);
    return GC_ERR_SUCCESS;
}

GC_API IFGetInfo(IF_HANDLE interface, INTERFACE_INFO_CMD command, INFO_DATATYPE *type, void *buffer,
                 size_t *size)
{
    TRY(check_interface(interface));
    return interface_info(command, (Reply){type, buffer, size});
}

GC_API IFGetParentTL(IF_HANDLE interface, TL_HANDLE *system)
{
    TRY(check_interface(interface));
    return put_handle(system, &system_users);
}

GC_API IFGetNumDevices(IF_HANDLE interface, uint32_t *count)
{
    TRY(check_interface(interface));
    return put_count(count, DEVICE_COUNT);
}

GC_API IFGetDeviceID(IF_HANDLE interface, uint32_t index, char *id, size_t *size)
{
    TRY(check_interface(interface));
    if (index >= DEVICE_COUNT)
        return fail(GC_ERR_INVALID_INDEX, "there are %d devices, not %u", DEVICE_COUNT, index + 1);
    return device_info((int)index, DEVICE_INFO_ID, (Reply){NULL, id, size});
}

GC_API IFUpdateDeviceList(IF_HANDLE interface, bool8_t *is_changed, uint64_t timeout_ms)
{
    (void)timeout_ms;
    TRY(check_interface(interface));
    if (is_changed)
        *is_changed = 0;
    return GC_ERR_SUCCESS;
}

GC_API IFGetDeviceInfo(IF_HANDLE interface, const char *id, DEVICE_INFO_CMD command,
                       INFO_DATATYPE *type, void *buffer, size_t *size)
{
    TRY(check_interface(interface));
    int index = find_device(id);
    if (index < 0)
        return last_error;
    return device_info(index, command, (Reply){type, buffer, size});
}

static GC_ERROR open_device(int index, const char *id)
{
    Device *device = &devices[index];
    char other[256];
    if (device->is_open[DEVICE])
        return fail(GC_ERR_RESOURCE_IN_USE, "%s is open in this process", id);
    if (!lock_device(index))
        return fail(errno == EAGAIN || errno == EACCES ? GC_ERR_RESOURCE_IN_USE : GC_ERR_IO,
                    "%s: held by another process, or its lock file cannot be made: %m", id);
    runtime_path(other, index, "other");
    snprintf(device->id, sizeof device->id, "%s", id);
    device->camera = camera_open(id, other);
    if (!device->camera) {
        close(device->lock);
        return fail(GC_ERR_OUT_OF_MEMORY, "%s: no memory or no thread for it", id);
    }
    device->is_open[DEVICE] = device->is_open[PORT] = 1;
    return GC_ERR_SUCCESS;
}

GC_API IFOpenDevice(IF_HANDLE interface, const char *id, DEVICE_ACCESS_FLAGS access,
                    DEV_HANDLE *device)
{
    TRY(check_interface(interface));
    int index = find_device(id);
    if (index < 0)
        return last_error;
    TRY(put_handle(device, NULL));
    if (access != DEVICE_ACCESS_CONTROL && access != DEVICE_ACCESS_EXCLUSIVE)
        return fail(GC_ERR_NOT_IMPLEMENTED, "a device opens for control or exclusively");
    pthread_mutex_lock(&modules);
    GC_ERROR result = open_device(index, id);
    pthread_mutex_unlock(&modules);
    if (result == GC_ERR_SUCCESS)
        *device = &devices[index].is_open[DEVICE];
    return result;
}

/* --- device --- */

GC_API DevClose(DEV_HANDLE handle)
{
    FIND(device, handle, DEVICE);
    pthread_mutex_lock(&modules);
    close_device(device);
    pthread_mutex_unlock(&modules);
    return GC_ERR_SUCCESS;
}

GC_API DevGetPort(DEV_HANDLE handle, PORT_HANDLE *port)
{
    FIND(device, handle, DEVICE);
    return put_handle(port, &device->is_open[PORT]);
}

GC_API DevGetParentIF(DEV_HANDLE handle, IF_HANDLE *interface)
{
    FIND(device, handle, DEVICE);
    return put_handle(interface, &interface_users);
}

GC_API DevGetInfo(DEV_HANDLE handle, DEVICE_INFO_CMD command, INFO_DATATYPE *type, void *buffer,
                  size_t *size)
{
    FIND(device, handle, DEVICE);
    return device_info((int)(device - devices), command, (Reply){type, buffer, size});
}

GC_API DevGetNumDataStreams(DEV_HANDLE handle, uint32_t *count)
{
    FIND(device, handle, DEVICE);
    return put_count(count, 1);
}

GC_API DevGetDataStreamID(DEV_HANDLE handle, uint32_t index, char *id, size_t *size)
{
    FIND(device, handle, DEVICE);
    if (index)
        return fail(GC_ERR_INVALID_INDEX, "there is one data stream, not %u", index + 1);
    return answer_text((Reply){NULL, id, size}, STREAM_ID);
}

GC_API DevOpenDataStream(DEV_HANDLE handle, const char *id, DS_HANDLE *stream)
{
    FIND(device, handle, DEVICE);
    if (!id || strcmp(id, STREAM_ID))
        return fail(GC_ERR_INVALID_ID, "no data stream %s", id ? id : "(null)");
    if (device->is_open[STREAM])
        return fail(GC_ERR_RESOURCE_IN_USE, "the data stream is open");
    TRY(put_handle(stream, &device->is_open[STREAM]));
    device->is_open[STREAM] = 1;
    return GC_ERR_SUCCESS;
}

/* --- data stream --- */

/* The stream, if the buffer is one of its own; NULL, and last_error is set. */
static Stream *find_stream(const void *handle, const void *buffer)
{
    Device *device = find(handle, STREAM);
    if (device && stream_has(&device->camera->stream, buffer))
        return &device->camera->stream;
    if (device)
        fail(GC_ERR_INVALID_HANDLE, "%p is no buffer announced to this stream", buffer);
    return NULL;
}

GC_API DSClose(DS_HANDLE handle)
{
    FIND(device, handle, STREAM);
    close_stream(device);
    return GC_ERR_SUCCESS;
}

GC_API DSGetParentDev(DS_HANDLE handle, DEV_HANDLE *parent)
{
    FIND(device, handle, STREAM);
    return put_handle(parent, &device->is_open[DEVICE]);
}

static GC_ERROR announce(DS_HANDLE handle, void *base, size_t size, void *user_pointer,
                         BUFFER_HANDLE *buffer)
{
    FIND(device, handle, STREAM);
    Stream *stream = &device->camera->stream;
    TRY(put_handle(buffer, NULL));
    if (!size || (uintptr_t)base % 2)
        return fail(GC_ERR_INVALID_BUFFER, "a buffer has an even address and more than 0 bytes");
    *buffer = stream_announce(stream, base, size, user_pointer);
    return *buffer ? GC_ERR_SUCCESS : fail(GC_ERR_OUT_OF_MEMORY, "no memory for a buffer");
}

GC_API DSAnnounceBuffer(DS_HANDLE handle, void *base, size_t size, void *user_pointer,
                        BUFFER_HANDLE *buffer)
{
    if (!base)
        return fail(GC_ERR_INVALID_PARAMETER, "no memory is named");
    return announce(handle, base, size, user_pointer, buffer);
}

GC_API DSAllocAndAnnounceBuffer(DS_HANDLE handle, size_t size, void *user_pointer,
                                BUFFER_HANDLE *buffer)
{
    return announce(handle, NULL, size, user_pointer, buffer);
}

GC_API DSRevokeBuffer(DS_HANDLE handle, BUFFER_HANDLE buffer, void **base, void **user_pointer)
{
    Stream *stream = find_stream(handle, buffer);
    if (!stream)
        return last_error;
    FIND(device, handle, STREAM);
    Buffer *revoked = buffer;
    if (base)
        *base = revoked->is_owned ? NULL : revoked->base;
    if (user_pointer)
        *user_pointer = revoked->user_pointer;
    while (stream_revoke(stream, revoked) == GC_ERR_BUSY)
        camera_release_buffer(device->camera);
    return GC_ERR_SUCCESS;
}

GC_API DSQueueBuffer(DS_HANDLE handle, BUFFER_HANDLE buffer)
{
    Stream *stream = find_stream(handle, buffer);
    if (!stream)
        return last_error;
    if (stream_queue(stream, buffer) != GC_ERR_SUCCESS)
        return fail(GC_ERR_RESOURCE_IN_USE, "the buffer is queued or waits for its consumer");
    return GC_ERR_SUCCESS;
}

GC_API DSFlushQueue(DS_HANDLE handle, ACQ_QUEUE_TYPE how)
{
    FIND(device, handle, STREAM);
    camera_release_buffer(device->camera);
    if (stream_flush(&device->camera->stream, how) != GC_ERR_SUCCESS)
        return fail(GC_ERR_INVALID_PARAMETER, "no queue is flushed by %d", how);
    return GC_ERR_SUCCESS;
}

GC_API DSStartAcquisition(DS_HANDLE handle, ACQ_START_FLAGS flags, uint64_t count)
{
    FIND(device, handle, STREAM);
    Stream *stream = &device->camera->stream;
    if (flags)
        return fail(GC_ERR_NOT_IMPLEMENTED, "start flags %d", flags);
    pthread_mutex_lock(&stream->lock);
    bool is_grabbing = stream->is_grabbing;
    if (!is_grabbing) {
        stream->remaining = count;
        stream->delivered = stream->underruns = stream->started = 0;
        stream->is_grabbing = true;
        stream->is_killed = false;
    }
    pthread_mutex_unlock(&stream->lock);
    return is_grabbing ? fail(GC_ERR_RESOURCE_IN_USE, "the acquisition runs") : GC_ERR_SUCCESS;
}

GC_API DSStopAcquisition(DS_HANDLE handle, ACQ_STOP_FLAGS flags)
{
    (void)flags; /* a frame begun is discarded either way: its buffer must be free at once */
    FIND(device, handle, STREAM);
    end_grabbing(device->camera);
    return GC_ERR_SUCCESS;
}

GC_API DSGetInfo(DS_HANDLE handle, STREAM_INFO_CMD command, INFO_DATATYPE *type, void *buffer,
                 size_t *size)
{
    Reply reply = {type, buffer, size};
    FIND(device, handle, STREAM);
    pthread_mutex_lock(&device->camera->stream.lock);
    Stream now = device->camera->stream;
    pthread_mutex_unlock(&device->camera->stream.lock);
    switch (command) {
    case STREAM_INFO_ID: return answer_text(reply, STREAM_ID);
    case STREAM_INFO_NUM_DELIVERED: return answer_u64(reply, now.delivered);
    case STREAM_INFO_NUM_UNDERRUN: return answer_u64(reply, now.underruns);
    case STREAM_INFO_NUM_ANNOUNCED: return answer_size(reply, now.announced_count);
    case STREAM_INFO_NUM_QUEUED: return answer_size(reply, now.input.count);
    case STREAM_INFO_NUM_AWAIT_DELIVERY: return answer_size(reply, now.output.count);
    case STREAM_INFO_NUM_STARTED: return answer_u64(reply, now.started);
    case STREAM_INFO_PAYLOAD_SIZE: return answer_size(reply, camera_payload_bytes(device->camera));
    case STREAM_INFO_IS_GRABBING: return answer_bool(reply, now.is_grabbing);
    case STREAM_INFO_DEFINES_PAYLOADSIZE: return answer_bool(reply, false);
    case STREAM_INFO_TLTYPE: return answer_text(reply, TL_TYPE);
    case STREAM_INFO_NUM_CHUNKS_MAX: return answer_size(reply, MOST_SELECTED);
    case STREAM_INFO_BUF_ANNOUNCE_MIN: return answer_size(reply, 1);
    case STREAM_INFO_BUF_ALIGNMENT: return answer_size(reply, 2);
    default: return no_such_info(command);
    }
}

GC_API DSGetBufferID(DS_HANDLE handle, uint32_t index, BUFFER_HANDLE *buffer)
{
    FIND(device, handle, STREAM);
    Stream *stream = &device->camera->stream;
    Buffer *at = stream->announced;
    for (; at && index; index--)
        at = at->next_announced;
    if (!at)
        return fail(GC_ERR_INVALID_INDEX, "so many buffers are not announced");
    return put_handle(buffer, at);
}

GC_API DSGetBufferInfo(DS_HANDLE handle, BUFFER_HANDLE named, BUFFER_INFO_CMD command,
                       INFO_DATATYPE *type, void *to, size_t *size)
{
    Reply reply = {type, to, size};
    Stream *stream = find_stream(handle, named);
    if (!stream)
        return last_error;
    Buffer *buffer = named;
    switch (command) {
    case BUFFER_INFO_BASE: return answer_pointer(reply, buffer->base);
    case BUFFER_INFO_SIZE: return answer_size(reply, buffer->size);
    case BUFFER_INFO_USER_PTR: return answer_pointer(reply, buffer->user_pointer);
    case BUFFER_INFO_TIMESTAMP:
    case BUFFER_INFO_TIMESTAMP_NS: return answer_u64(reply, buffer->frame.timestamp_ns);
    case BUFFER_INFO_NEW_DATA: return answer_bool(reply, buffer->is_new);
    case BUFFER_INFO_IS_QUEUED:
        return answer_bool(reply, buffer->place == IN_INPUT || buffer->place == IN_OUTPUT);
    case BUFFER_INFO_IS_ACQUIRING: return answer_bool(reply, buffer->place == FILLING);
    case BUFFER_INFO_IS_INCOMPLETE: return answer_bool(reply, buffer->frame.is_incomplete);
    case BUFFER_INFO_TLTYPE: return answer_text(reply, TL_TYPE);
    case BUFFER_INFO_SIZE_FILLED:
    case BUFFER_INFO_DATA_SIZE: return answer_size(reply, buffer->frame.bytes);
    case BUFFER_INFO_WIDTH: return answer_size(reply, buffer->frame.width);
    case BUFFER_INFO_HEIGHT: return answer_size(reply, buffer->frame.height);
    case BUFFER_INFO_XOFFSET: return answer_size(reply, buffer->frame.offset_x);
    case BUFFER_INFO_YOFFSET:
    case BUFFER_INFO_XPADDING:
    case BUFFER_INFO_YPADDING:
    case BUFFER_INFO_IMAGEOFFSET: return answer_size(reply, 0);
    case BUFFER_INFO_FRAMEID: return answer_u64(reply, buffer->frame.id);
    case BUFFER_INFO_IMAGEPRESENT: return answer_bool(reply, buffer->frame.rows > 0);
    case BUFFER_INFO_PAYLOADTYPE: return answer_size(reply, PAYLOAD_TYPE_IMAGE);
    case BUFFER_INFO_PIXELFORMAT: return answer_u64(reply, buffer->frame.pixel_format);
    case BUFFER_INFO_PIXELFORMAT_NAMESPACE:
        return answer_u64(reply, PIXELFORMAT_NAMESPACE_PFNC_32BIT);
    case BUFFER_INFO_DELIVERED_IMAGEHEIGHT: return answer_size(reply, buffer->frame.rows);
    case BUFFER_INFO_DELIVERED_CHUNKPAYLOADSIZE:
        return answer_size(reply, 8 * buffer->frame.chunk_count);
    case BUFFER_INFO_PIXEL_ENDIANNESS: return answer_i32(reply, PIXELENDIANNESS_LITTLE);
    case BUFFER_INFO_DATA_LARGER_THAN_BUFFER: return answer_bool(reply, false);
    case BUFFER_INFO_CONTAINS_CHUNKDATA: return answer_bool(reply, buffer->frame.chunk_count > 0);
    default: return no_such_info(command);
    }
}

GC_API DSGetBufferChunkData(DS_HANDLE handle, BUFFER_HANDLE named, SINGLE_CHUNK_DATA *chunks,
                            size_t *count)
{
    Stream *stream = find_stream(handle, named);
    if (!stream)
        return last_error;
    Buffer *buffer = named;
    if (!count)
        return fail(GC_ERR_INVALID_PARAMETER, "no place for the number");
    if (!buffer->frame.chunk_count)
        return fail(GC_ERR_NO_DATA, "the buffer has no chunks");
    if (chunks && *count < buffer->frame.chunk_count)
        return fail(GC_ERR_BUFFER_TOO_SMALL, "the buffer has %zu chunks",
                    buffer->frame.chunk_count);
    if (chunks)
        memcpy(chunks, buffer->frame.chunks, buffer->frame.chunk_count * sizeof *chunks);
    *count = buffer->frame.chunk_count;
    return GC_ERR_SUCCESS;
}

/* --- what only multi-part and composite buffers have --- */

static GC_ERROR no_parts(void) { return fail(GC_ERR_NOT_IMPLEMENTED, "buffers have one part"); }

GC_API DSGetNumBufferParts(void) { return no_parts(); }
GC_API DSGetBufferPartInfo(void) { return no_parts(); }
GC_API DSAnnounceCompositeBuffer(void) { return no_parts(); }
GC_API DSGetNumFlows(void) { return no_parts(); }
GC_API DSGetFlowInfo(void) { return no_parts(); }
GC_API DSGetNumBufferSegments(void) { return no_parts(); }
GC_API DSGetBufferSegmentInfo(void) { return no_parts(); }
