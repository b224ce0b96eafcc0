/* A thin GenTL 1.6 producer over libaravis, for tests: whatever GigE Vision camera aravis finds is
 * seen by any GenTL consumer. One interface, one data stream a camera, no XML for its own modules.
 *
 * Link with -Wl,-z,nodelete: a consumer unloads it at every update, GLib's types stay registered. */
#include <arv.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* Of the GenTL standard 1.6, chapter 6: only what is used here. */
enum {
    SUCCESS = 0,
    ERR_NOT_IMPLEMENTED = -1003,
    ERR_RESOURCE_IN_USE = -1004,
    ERR_ACCESS_DENIED = -1005,
    ERR_INVALID_HANDLE = -1006,
    ERR_INVALID_ID = -1007,
    ERR_NO_DATA = -1008,
    ERR_IO = -1010,
    ERR_TIMEOUT = -1011,
    ERR_NOT_AVAILABLE = -1014,
    ERR_BUFFER_TOO_SMALL = -1016,
    ERR_INVALID_INDEX = -1017,
    ERR_RESOURCE_EXHAUSTED = -1020,
};
enum { STRING = 1, INT32 = 5, UINT32 = 6, UINT64 = 8, PTR = 10, BOOL8 = 11, SIZET = 12 };
enum { TL_ID, TL_VENDOR, TL_MODEL, TL_VERSION, TL_TLTYPE, TL_NAME, TL_PATHNAME, TL_DISPLAYNAME,
       TL_CHAR_ENCODING, TL_VER_MAJOR, TL_VER_MINOR };
enum { INTERFACE_ID, INTERFACE_DISPLAYNAME, INTERFACE_TLTYPE };
enum { DEVICE_ID, DEVICE_VENDOR, DEVICE_MODEL, DEVICE_TLTYPE, DEVICE_DISPLAYNAME,
       DEVICE_ACCESS_STATUS, DEVICE_USER_DEFINED_NAME, DEVICE_SERIAL_NUMBER, DEVICE_VERSION,
       DEVICE_TIMESTAMP_FREQUENCY };
enum { STATUS_READWRITE = 1, STATUS_NOACCESS = 3, STATUS_OPEN_READWRITE = 5 };
enum { PORT_ID, PORT_VENDOR, PORT_MODEL, PORT_TLTYPE, PORT_MODULE, PORT_LITTLE_ENDIAN,
       PORT_BIG_ENDIAN, PORT_ACCESS_READ, PORT_ACCESS_WRITE, PORT_ACCESS_NA, PORT_ACCESS_NI,
       PORT_VERSION, PORT_PORTNAME };
enum { URL_INFO_URL = 0 };
enum { STREAM_ID = 0, STREAM_NUM_ANNOUNCED = 3, STREAM_IS_GRABBING = 8,
       STREAM_DEFINES_PAYLOADSIZE = 9, STREAM_TLTYPE = 10, STREAM_BUF_ANNOUNCE_MIN = 12,
       STREAM_BUF_ALIGNMENT = 13 };
enum { BUFFER_BASE = 0, BUFFER_SIZE = 1, BUFFER_USER_PTR = 2, BUFFER_TIMESTAMP = 3,
       BUFFER_IS_INCOMPLETE = 7, BUFFER_TLTYPE = 8, BUFFER_SIZE_FILLED = 9, BUFFER_WIDTH = 10,
       BUFFER_HEIGHT = 11, BUFFER_XPADDING = 14, BUFFER_FRAMEID = 16, BUFFER_IMAGEOFFSET = 18,
       BUFFER_PAYLOADTYPE = 19, BUFFER_PIXELFORMAT = 20, BUFFER_PIXELFORMAT_NAMESPACE = 21,
       BUFFER_DELIVERED_IMAGEHEIGHT = 22, BUFFER_DATA_SIZE = 27, BUFFER_TIMESTAMP_NS = 28,
       BUFFER_CONTAINS_CHUNKDATA = 30 };
enum { PAYLOAD_IMAGE = 1, NAMESPACE_PFNC_32BIT = 4, EVENT_NEW_BUFFER = 1 };
enum { EVENT_TYPE, EVENT_NUM_IN_QUEUE, EVENT_NUM_FIRED, EVENT_SIZE_MAX, EVENT_DATA_SIZE_MAX };

typedef int32_t Error;
#define API __attribute__((visibility("default"))) Error
#define TLTYPE "GEV"
#define STREAM_NAME "stream"
#define XML_ADDRESS (UINT64_C(1) << 40) /* above every register of a GigE camera */
enum { MAX_CAMERAS = 8, SOCKET_BYTES = 4 << 20 };
enum { NO_FRAME_ID = 0, LAST_FRAME_ID = 0xFFFF }; /* GigE Vision 1.x: 1 follows 65535 */

typedef enum { SYSTEM, INTERFACE, DEVICE, REMOTE_PORT, STREAM, EVENT } Kind;
typedef struct Camera Camera;
typedef struct { Kind kind; Camera *camera; } Module;

struct Camera {
    Module device, port, data_stream, event;
    char id[128], vendor[64], model[64], serial[64];
    ArvDevice *arv;
    ArvStream *stream;
    atomic_bool is_lost;
    bool is_grabbing, is_thread_running;
    size_t announced;
    uint64_t fired, last_frame_id;
};

typedef struct { void *base, *user; size_t size; ArvBuffer *arv; uint64_t frame_id; } Buffer;

static Module system_module = {SYSTEM, NULL}, interface_module = {INTERFACE, NULL};
static Camera cameras[MAX_CAMERAS];
static unsigned n_cameras;
static _Thread_local char last_text[256] = "no error";

static Error fail(Error code, const char *text)
{
    snprintf(last_text, sizeof last_text, "%s", text);
    return code;
}

static Error fail_with(Error code, GError *error)
{
    fail(code, error ? error->message : "aravis gives no reason");
    g_clear_error(&error);
    return code;
}

/* --- how every Get...Info answers: type, then size, then the value ------------------------------ */

typedef struct { int32_t *type; void *buffer; size_t *size; } Answer;

static Error give(Answer to, int32_t type, const void *value, size_t size)
{
    if (to.type)
        *to.type = type;
    size_t room = *to.size;
    *to.size = size;
    if (!to.buffer)
        return SUCCESS;
    if (room < size)
        return fail(ERR_BUFFER_TOO_SMALL, "the buffer is too small");
    memcpy(to.buffer, value, size);
    return SUCCESS;
}

static Error give_text(Answer to, const char *text) { return give(to, STRING, text, strlen(text) + 1); }
static Error give_i32(Answer to, int32_t value) { return give(to, INT32, &value, sizeof value); }
static Error give_u32(Answer to, uint32_t value) { return give(to, UINT32, &value, sizeof value); }
static Error give_u64(Answer to, uint64_t value) { return give(to, UINT64, &value, sizeof value); }
static Error give_size(Answer to, size_t value) { return give(to, SIZET, &value, sizeof value); }
static Error give_pointer(Answer to, void *value) { return give(to, PTR, &value, sizeof value); }
static Error give_bool(Answer to, bool value)
{
    uint8_t byte = value;
    return give(to, BOOL8, &byte, sizeof byte);
}

static Camera *camera_of(void *handle, Kind kind)
{
    Module *module = handle;
    return module && module->kind == kind ? module->camera : NULL;
}

#define CAMERA_OR_FAIL(camera, handle, kind)                                                       \
    Camera *camera = camera_of(handle, kind);                                                      \
    if (!camera)                                                                                   \
        return fail(ERR_INVALID_HANDLE, "not such a handle")

/* --- library ------------------------------------------------------------------------------------ */

API GCInitLib(void)
{
    arv_disable_interface("Fake"); /* aravis's camera without a wire */
    arv_disable_interface("USB3Vision");
    return SUCCESS;
}

API GCCloseLib(void) { return SUCCESS; }

API GCGetLastError(Error *code, char *text, size_t *size)
{
    *code = SUCCESS;
    return give((Answer){NULL, text, size}, STRING, last_text, strlen(last_text) + 1);
}

API GCGetInfo(int32_t command, int32_t *type, void *buffer, size_t *size)
{
    Answer to = {type, buffer, size};
    switch (command) {
    case TL_ID: case TL_NAME: case TL_PATHNAME: return give_text(to, "aravis_producer.cti");
    case TL_VENDOR: return give_text(to, "VQI tests");
    case TL_MODEL: case TL_DISPLAYNAME: return give_text(to, "aravis behind GenTL");
    case TL_VERSION: return give_text(to, "1");
    case TL_TLTYPE: return give_text(to, TLTYPE);
    case TL_CHAR_ENCODING: return give_i32(to, 0);
    case TL_VER_MAJOR: return give_u32(to, 1);
    case TL_VER_MINOR: return give_u32(to, 6);
    default: return fail(ERR_NOT_IMPLEMENTED, "no such system information");
    }
}

/* --- system and interface ----------------------------------------------------------------------- */

API TLOpen(void **system)
{
    *system = &system_module;
    return SUCCESS;
}

API TLClose(void *system) { return system == &system_module ? SUCCESS : ERR_INVALID_HANDLE; }

API TLGetInfo(void *system, int32_t command, int32_t *type, void *buffer, size_t *size)
{
    (void)system;
    return GCGetInfo(command, type, buffer, size);
}

API TLUpdateInterfaceList(void *system, uint8_t *is_changed, uint64_t timeout_ms)
{
    (void)system, (void)timeout_ms;
    if (is_changed)
        *is_changed = false;
    return SUCCESS;
}

API TLGetNumInterfaces(void *system, uint32_t *count)
{
    (void)system;
    *count = 1;
    return SUCCESS;
}

API TLGetInterfaceID(void *system, uint32_t index, char *id, size_t *size)
{
    (void)system;
    return index ? ERR_INVALID_INDEX : give_text((Answer){NULL, id, size}, "GigE Vision");
}

API IFGetInfo(void *interface, int32_t command, int32_t *type, void *buffer, size_t *size)
{
    (void)interface;
    Answer to = {type, buffer, size};
    switch (command) {
    case INTERFACE_ID: case INTERFACE_DISPLAYNAME: return give_text(to, "GigE Vision");
    case INTERFACE_TLTYPE: return give_text(to, TLTYPE);
    default: return fail(ERR_NOT_IMPLEMENTED, "no such interface information");
    }
}

API TLGetInterfaceInfo(void *system, const char *id, int32_t command, int32_t *type, void *buffer,
                       size_t *size)
{
    (void)system, (void)id;
    return IFGetInfo(&interface_module, command, type, buffer, size);
}

API TLOpenInterface(void *system, const char *id, void **interface)
{
    (void)system, (void)id;
    *interface = &interface_module;
    return SUCCESS;
}

API IFClose(void *interface) { return interface == &interface_module ? SUCCESS : ERR_INVALID_HANDLE; }

static bool is_any_open(void)
{
    for (unsigned i = 0; i < n_cameras; i++)
        if (cameras[i].arv)
            return true;
    return false;
}

static void describe(Camera *camera, unsigned index)
{
    *camera = (Camera){.device = {DEVICE, camera}, .port = {REMOTE_PORT, camera},
                       .data_stream = {STREAM, camera}, .event = {EVENT, camera}};
    g_strlcpy(camera->id, arv_get_device_id(index), sizeof camera->id);
    g_strlcpy(camera->vendor, arv_get_device_vendor(index), sizeof camera->vendor);
    g_strlcpy(camera->model, arv_get_device_model(index), sizeof camera->model);
    g_strlcpy(camera->serial, arv_get_device_serial_nbr(index), sizeof camera->serial);
}

API IFUpdateDeviceList(void *interface, uint8_t *is_changed, uint64_t timeout_ms)
{
    (void)interface, (void)timeout_ms;
    if (is_changed)
        *is_changed = true;
    if (is_any_open()) /* handles point into the list */
        return SUCCESS;
    arv_update_device_list();
    n_cameras = MIN(arv_get_n_devices(), MAX_CAMERAS);
    for (unsigned i = 0; i < n_cameras; i++)
        describe(&cameras[i], i);
    return SUCCESS;
}

API IFGetNumDevices(void *interface, uint32_t *count)
{
    (void)interface;
    *count = n_cameras;
    return SUCCESS;
}

API IFGetDeviceID(void *interface, uint32_t index, char *id, size_t *size)
{
    (void)interface;
    if (index >= n_cameras)
        return fail(ERR_INVALID_INDEX, "no such camera");
    return give_text((Answer){NULL, id, size}, cameras[index].id);
}

API DevGetInfo(void *device, int32_t command, int32_t *type, void *buffer, size_t *size)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    Answer to = {type, buffer, size};
    switch (command) {
    case DEVICE_ID: return give_text(to, camera->id);
    case DEVICE_VENDOR: return give_text(to, camera->vendor);
    case DEVICE_MODEL: case DEVICE_DISPLAYNAME: return give_text(to, camera->model);
    case DEVICE_TLTYPE: return give_text(to, TLTYPE);
    case DEVICE_ACCESS_STATUS:
        return give_i32(to, camera->is_lost ? STATUS_NOACCESS
                            : camera->arv   ? STATUS_OPEN_READWRITE
                                            : STATUS_READWRITE);
    case DEVICE_SERIAL_NUMBER: return give_text(to, camera->serial);
    case DEVICE_TIMESTAMP_FREQUENCY: return give_u64(to, 1000000000);
    default: return fail(ERR_NOT_AVAILABLE, "the camera does not say");
    }
}

static Camera *find(const char *id)
{
    for (unsigned i = 0; i < n_cameras; i++)
        if (!strcmp(cameras[i].id, id))
            return &cameras[i];
    return NULL;
}

API IFGetDeviceInfo(void *interface, const char *id, int32_t command, int32_t *type, void *buffer,
                    size_t *size)
{
    (void)interface;
    Camera *camera = find(id);
    if (!camera)
        return fail(ERR_INVALID_ID, "no such camera");
    return DevGetInfo(&camera->device, command, type, buffer, size);
}

/* --- camera and its port ------------------------------------------------------------------------ */

/* From aravis's heartbeat: the camera is gone, or it was restarted and knows its owner no more. */
static void lose(ArvDevice *arv, void *camera)
{
    (void)arv;
    ((Camera *)camera)->is_lost = true;
}

static void close_stream(Camera *camera)
{
    /* aravis complains when it finalises a stream whose thread is stopped. */
    if (camera->stream && !camera->is_thread_running)
        arv_stream_start_thread(camera->stream);
    g_clear_object(&camera->stream);
}

static void close_camera(Camera *camera)
{
    close_stream(camera);
    g_clear_object(&camera->arv);
}

API IFOpenDevice(void *interface, const char *id, int32_t flags, void **device)
{
    (void)interface, (void)flags;
    Camera *camera = find(id);
    if (!camera)
        return fail(ERR_INVALID_ID, "no such camera");
    if (camera->arv)
        return fail(ERR_RESOURCE_IN_USE, "the camera is open already");
    GError *error = NULL;
    camera->arv = arv_open_device(id, &error);
    if (!camera->arv)
        return fail_with(ERR_IO, error);
    if (!arv_gv_device_is_controller(ARV_GV_DEVICE(camera->arv))) {
        close_camera(camera);
        return fail(ERR_ACCESS_DENIED, "another program controls the camera");
    }
    camera->is_lost = false;
    g_signal_connect(camera->arv, "control-lost", G_CALLBACK(lose), camera);
    *device = &camera->device;
    return SUCCESS;
}

API DevClose(void *device)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    close_camera(camera);
    return SUCCESS;
}

API DevGetPort(void *device, void **port)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    *port = &camera->port;
    return SUCCESS;
}

API GCGetPortInfo(void *port, int32_t command, int32_t *type, void *buffer, size_t *size)
{
    Answer to = {type, buffer, size};
    Module *module = port;
    switch (command) {
    case PORT_ID: case PORT_MODEL: case PORT_VENDOR: return give_text(to, "aravis");
    case PORT_TLTYPE: return give_text(to, TLTYPE);
    case PORT_MODULE: case PORT_PORTNAME:
        return give_text(to, module->kind == REMOTE_PORT ? "Device" : "TLModule");
    case PORT_LITTLE_ENDIAN: case PORT_ACCESS_NA: return give_bool(to, false);
    case PORT_BIG_ENDIAN: return give_bool(to, true);
    case PORT_ACCESS_READ: case PORT_ACCESS_WRITE: return give_bool(to, module->kind == REMOTE_PORT);
    case PORT_ACCESS_NI: return give_bool(to, module->kind != REMOTE_PORT);
    default: return fail(ERR_NOT_AVAILABLE, "no such port information");
    }
}

API GCGetNumPortURLs(void *port, uint32_t *count)
{
    CAMERA_OR_FAIL(camera, port, REMOTE_PORT);
    *count = 1;
    return SUCCESS;
}

API GCGetPortURLInfo(void *port, uint32_t index, int32_t command, int32_t *type, void *buffer,
                     size_t *size)
{
    CAMERA_OR_FAIL(camera, port, REMOTE_PORT);
    if (index || command != URL_INFO_URL)
        return fail(ERR_NOT_AVAILABLE, "only the URL of the one file is known");
    size_t xml_size = 0;
    arv_device_get_genicam_xml(camera->arv, &xml_size);
    char url[96];
    snprintf(url, sizeof url, "Local:camera.xml;%" PRIX64 ";%zX", XML_ADDRESS, xml_size);
    return give_text((Answer){type, buffer, size}, url);
}

static Error read_xml(Camera *camera, uint64_t offset, void *buffer, size_t size)
{
    size_t xml_size = 0;
    const char *xml = arv_device_get_genicam_xml(camera->arv, &xml_size);
    if (offset > xml_size || size > xml_size - offset)
        return fail(ERR_IO, "read beyond the XML");
    memcpy(buffer, xml + offset, size);
    return SUCCESS;
}

/* After one time-out every access would take its seconds again. */
static Error access_failed(Camera *camera, GError *error)
{
    if (error && error->code == ARV_DEVICE_ERROR_TIMEOUT)
        camera->is_lost = true;
    return fail_with(ERR_IO, error);
}

API GCReadPort(void *port, uint64_t address, void *buffer, size_t *size)
{
    CAMERA_OR_FAIL(camera, port, REMOTE_PORT);
    if (address >= XML_ADDRESS)
        return read_xml(camera, address - XML_ADDRESS, buffer, *size);
    if (camera->is_lost)
        return fail(ERR_IO, "the camera does not answer");
    GError *error = NULL;
    if (!arv_device_read_memory(camera->arv, address, (guint32)*size, buffer, &error))
        return access_failed(camera, error);
    return SUCCESS;
}

API GCWritePort(void *port, uint64_t address, const void *buffer, size_t *size)
{
    CAMERA_OR_FAIL(camera, port, REMOTE_PORT);
    if (camera->is_lost)
        return fail(ERR_IO, "the camera does not answer");
    GError *error = NULL;
    if (!arv_device_write_memory(camera->arv, address, (guint32)*size, (void *)buffer, &error))
        return access_failed(camera, error);
    return SUCCESS;
}

/* --- data stream -------------------------------------------------------------------------------- */

API DevGetNumDataStreams(void *device, uint32_t *count)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    *count = 1;
    return SUCCESS;
}

API DevGetDataStreamID(void *device, uint32_t index, char *id, size_t *size)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    return index ? ERR_INVALID_INDEX : give_text((Answer){NULL, id, size}, STREAM_NAME);
}

API DevOpenDataStream(void *device, const char *id, void **data_stream)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    (void)id;
    GError *error = NULL;
    /* A packet socket sees nothing on the loopback interface. */
    arv_gv_device_set_stream_options(ARV_GV_DEVICE(camera->arv),
                                     ARV_GV_STREAM_OPTION_PACKET_SOCKET_DISABLED);
    camera->stream = arv_device_create_stream(camera->arv, NULL, NULL, &error);
    if (!camera->stream)
        return fail_with(ERR_IO, error);
    /* aravis's fake camera knows no resend. */
    g_object_set(camera->stream, "packet-resend", ARV_GV_STREAM_PACKET_RESEND_NEVER,
                 "socket-buffer", ARV_GV_STREAM_SOCKET_BUFFER_FIXED, "socket-buffer-size",
                 SOCKET_BYTES, NULL);
    camera->is_thread_running = true;
    *data_stream = &camera->data_stream;
    return SUCCESS;
}

API DSGetInfo(void *data_stream, int32_t command, int32_t *type, void *buffer, size_t *size)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    Answer to = {type, buffer, size};
    switch (command) {
    case STREAM_ID: return give_text(to, STREAM_NAME);
    case STREAM_NUM_ANNOUNCED: return give_size(to, camera->announced);
    case STREAM_IS_GRABBING: return give_bool(to, camera->is_grabbing);
    case STREAM_DEFINES_PAYLOADSIZE: return give_bool(to, false);
    case STREAM_TLTYPE: return give_text(to, TLTYPE);
    case STREAM_BUF_ANNOUNCE_MIN: case STREAM_BUF_ALIGNMENT: return give_size(to, 1);
    default: return fail(ERR_NOT_AVAILABLE, "no such stream information");
    }
}

API DSAnnounceBuffer(void *data_stream, void *base, size_t size, void *user, void **handle)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    Buffer *buffer = g_new0(Buffer, 1);
    *buffer = (Buffer){.base = base, .user = user, .size = size};
    buffer->arv = arv_buffer_new_full(size, base, buffer, NULL);
    camera->announced++;
    *handle = buffer;
    return SUCCESS;
}

API DSQueueBuffer(void *data_stream, void *handle)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    ArvBuffer *arv = ((Buffer *)handle)->arv;
    arv_buffer_set_frame_id(arv, NO_FRAME_ID);
    arv_buffer_set_timestamp(arv, 0);
    arv_stream_push_buffer(camera->stream, g_object_ref(arv));
    return SUCCESS;
}

API DSStartAcquisition(void *data_stream, int32_t flags, uint64_t frames)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    (void)flags, (void)frames;
    if (!camera->is_thread_running)
        arv_stream_start_thread(camera->stream);
    camera->is_thread_running = camera->is_grabbing = true;
    return SUCCESS;
}

/* Gives the stream's references back; the buffers stay announced and may be queued again. */
API DSFlushQueue(void *data_stream, int32_t operation)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    (void)operation;
    if (camera->is_thread_running && !camera->is_grabbing)
        arv_stream_stop_thread(camera->stream, TRUE);
    camera->is_thread_running = camera->is_grabbing;
    return SUCCESS;
}

API DSStopAcquisition(void *data_stream, int32_t flags)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    (void)flags;
    camera->is_grabbing = false;
    return DSFlushQueue(data_stream, 0);
}

API DSRevokeBuffer(void *data_stream, void *handle, void **base, void **user)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    Buffer *buffer = handle;
    if (base)
        *base = buffer->base;
    if (user)
        *user = buffer->user;
    g_object_unref(buffer->arv);
    g_free(buffer);
    camera->announced--;
    return SUCCESS;
}

API DSClose(void *data_stream)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    close_stream(camera);
    return SUCCESS;
}

static Error give_image_info(Answer to, int32_t command, ArvBuffer *image)
{
    if (arv_buffer_get_status(image) != ARV_BUFFER_STATUS_SUCCESS)
        return fail(ERR_NOT_AVAILABLE, "aravis tells the layout of complete frames only");
    switch (command) {
    case BUFFER_WIDTH: return give_size(to, (size_t)arv_buffer_get_image_width(image));
    case BUFFER_HEIGHT: case BUFFER_DELIVERED_IMAGEHEIGHT:
        return give_size(to, (size_t)arv_buffer_get_image_height(image));
    case BUFFER_PIXELFORMAT: return give_u64(to, arv_buffer_get_image_pixel_format(image));
    case BUFFER_PIXELFORMAT_NAMESPACE: return give_u64(to, NAMESPACE_PFNC_32BIT);
    case BUFFER_XPADDING: {
        int x_padding = 0, y_padding = 0;
        arv_buffer_get_image_padding(image, &x_padding, &y_padding);
        return give_size(to, (size_t)x_padding);
    }
    default: return fail(ERR_NOT_AVAILABLE, "no such buffer information");
    }
}

API DSGetBufferInfo(void *data_stream, void *handle, int32_t command, int32_t *type, void *buffer,
                    size_t *size)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    Answer to = {type, buffer, size};
    Buffer *self = handle;
    bool is_complete = arv_buffer_get_status(self->arv) == ARV_BUFFER_STATUS_SUCCESS;
    switch (command) {
    case BUFFER_BASE: return give_pointer(to, self->base);
    case BUFFER_SIZE: return give_size(to, self->size);
    case BUFFER_USER_PTR: return give_pointer(to, self->user);
    case BUFFER_IS_INCOMPLETE: return give_bool(to, !is_complete);
    case BUFFER_TLTYPE: return give_text(to, TLTYPE);
    case BUFFER_SIZE_FILLED: case BUFFER_DATA_SIZE: return give_size(to, self->size);
    case BUFFER_FRAMEID: return give_u64(to, self->frame_id);
    case BUFFER_IMAGEOFFSET: return give_size(to, 0);
    case BUFFER_PAYLOADTYPE: return give_size(to, PAYLOAD_IMAGE);
    case BUFFER_TIMESTAMP: case BUFFER_TIMESTAMP_NS:
        return give_u64(to, arv_buffer_get_timestamp(self->arv));
    case BUFFER_CONTAINS_CHUNKDATA: return give_bool(to, false);
    default: return give_image_info(to, command, self->arv);
    }
}

API DSGetBufferChunkData(void *data_stream, void *handle, void *chunks, size_t *count)
{
    (void)data_stream, (void)handle, (void)chunks, (void)count;
    return fail(ERR_NO_DATA, "no chunks");
}

/* --- the new-buffer event ----------------------------------------------------------------------- */

API GCRegisterEvent(void *module, int32_t event_id, void **event)
{
    if (event_id != EVENT_NEW_BUFFER)
        return fail(ERR_NOT_IMPLEMENTED, "only the new-buffer event");
    CAMERA_OR_FAIL(camera, module, STREAM);
    *event = &camera->event;
    return SUCCESS;
}

API GCUnregisterEvent(void *module, int32_t event_id)
{
    (void)module, (void)event_id;
    return SUCCESS;
}

API EventGetInfo(void *event, int32_t command, int32_t *type, void *buffer, size_t *size)
{
    CAMERA_OR_FAIL(camera, event, EVENT);
    Answer to = {type, buffer, size};
    int filling = 0, filled = 0;
    switch (command) {
    case EVENT_TYPE: return give_i32(to, EVENT_NEW_BUFFER);
    case EVENT_NUM_IN_QUEUE:
        arv_stream_get_n_buffers(camera->stream, &filling, &filled);
        return give_size(to, (size_t)filled);
    case EVENT_NUM_FIRED: return give_u64(to, camera->fired);
    case EVENT_SIZE_MAX: case EVENT_DATA_SIZE_MAX: return give_size(to, 2 * sizeof(void *));
    default: return fail(ERR_NOT_IMPLEMENTED, "no such event information");
    }
}

/* aravis takes the id from the leader alone; where that was lost, the frame is the next in order. */
static uint64_t frame_id_of(Camera *camera, ArvBuffer *arv)
{
    uint64_t id = arv_buffer_get_frame_id(arv);
    if (id == NO_FRAME_ID)
        id = camera->last_frame_id % LAST_FRAME_ID + 1;
    camera->last_frame_id = id;
    return id;
}

API EventGetData(void *event, void *data, size_t *size, uint64_t timeout_ms)
{
    CAMERA_OR_FAIL(camera, event, EVENT);
    if (*size < 2 * sizeof(void *))
        return fail(ERR_BUFFER_TOO_SMALL, "the buffer is too small");
    uint64_t most_ms = G_MAXINT64 / 1000;
    ArvBuffer *arv =
        timeout_ms ? arv_stream_timeout_pop_buffer(camera->stream, 1000 * MIN(timeout_ms, most_ms))
                   : arv_stream_try_pop_buffer(camera->stream);
    if (!arv)
        return fail(ERR_TIMEOUT, "no buffer was filled in time");
    Buffer *buffer = (Buffer *)arv_buffer_get_user_data(arv);
    buffer->frame_id = frame_id_of(camera, arv);
    g_object_unref(arv);
    camera->fired++;
    void *pair[2] = {buffer, buffer->user};
    return give((Answer){NULL, data, size}, PTR, pair, sizeof pair);
}

API EventFlush(void *event)
{
    (void)event; /* DSFlushQueue has emptied the queue */
    return SUCCESS;
}
