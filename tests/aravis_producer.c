/* A thin GenTL 1.6 producer over libaravis, for tests: whatever GigE Vision camera aravis finds is
 * seen by any GenTL consumer. One interface, one data stream a camera, no XML for its own modules.
 *
 * Link with -Wl,-z,nodelete: a consumer unloads it at every update, GLib's types stay registered.
 */
#include <arv.h>
#include <inttypes.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "gentl.h"

#define TLTYPE "GEV"
#define STREAM_NAME "stream"
#define XML_ADDRESS (UINT64_C(1) << 40) /* above every register of a GigE camera */
enum { MAX_CAMERAS = 8, SOCKET_BYTES = 4 << 20 };
enum { NO_FRAME_ID = 0, LAST_FRAME_ID = 0xFFFF }; /* GigE Vision 1.x: 1 follows 65535 */

typedef enum { SYSTEM, INTERFACE, DEVICE, REMOTE_PORT, STREAM, EVENT } Kind;
typedef struct Camera Camera;
typedef struct {
    Kind kind;
    Camera *camera;
} Module;

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

typedef struct {
    void *base, *user;
    size_t size;
    ArvBuffer *arv;
    uint64_t frame_id;
} Buffer;

static Module system_module = {SYSTEM, NULL}, interface_module = {INTERFACE, NULL};
static Camera cameras[MAX_CAMERAS];
static unsigned n_cameras;
static _Thread_local char last_text[256] = "no error";

static GC_ERROR fail(GC_ERROR code, const char *text)
{
    snprintf(last_text, sizeof last_text, "%s", text);
    return code;
}

static GC_ERROR fail_with(GC_ERROR code, GError *error)
{
    fail(code, error ? error->message : "aravis gives no reason");
    g_clear_error(&error);
    return code;
}

/* --- how every Get...Info answers: type, then size, then the value ------------------------ */

typedef struct {
    INFO_DATATYPE *type;
    void *buffer;
    size_t *size;
} Answer;

static GC_ERROR give(Answer to, int32_t type, const void *value, size_t size)
{
    if (to.type)
        *to.type = type;
    size_t room = *to.size;
    *to.size = size;
    if (!to.buffer)
        return GC_ERR_SUCCESS;
    if (room < size)
        return fail(GC_ERR_BUFFER_TOO_SMALL, "the buffer is too small");
    memcpy(to.buffer, value, size);
    return GC_ERR_SUCCESS;
}

static GC_ERROR give_text(Answer to, const char *text)
{
    return give(to, INFO_DATATYPE_STRING, text, strlen(text) + 1);
}

#define GIVE_AS(name, type, datatype)                                    \
    static GC_ERROR name(Answer to, type value)                          \
    {                                                                    \
        return give(to, INFO_DATATYPE_##datatype, &value, sizeof value); \
    }
GIVE_AS(give_i32, int32_t, INT32)
GIVE_AS(give_u32, uint32_t, UINT32)
GIVE_AS(give_u64, uint64_t, UINT64)
GIVE_AS(give_size, size_t, SIZET)
GIVE_AS(give_pointer, void *, PTR)
GIVE_AS(give_bool, bool8_t, BOOL8)

static Camera *camera_of(void *handle, Kind kind)
{
    Module *module = handle;
    return module && module->kind == kind ? module->camera : NULL;
}

#define CAMERA_OR_FAIL(camera, handle, kind)  \
    Camera *camera = camera_of(handle, kind); \
    if (!camera)                              \
        return fail(GC_ERR_INVALID_HANDLE, "not such a handle")

/* --- library ------------------------------------------------------------------------------ */

GC_API GCInitLib(void)
{
    arv_disable_interface("Fake"); /* aravis's camera without a wire */
    arv_disable_interface("USB3Vision");
    return GC_ERR_SUCCESS;
}

GC_API GCCloseLib(void) { return GC_ERR_SUCCESS; }

GC_API GCGetLastError(GC_ERROR *code, char *text, size_t *size)
{
    *code = GC_ERR_SUCCESS;
    return give((Answer){NULL, text, size}, INFO_DATATYPE_STRING, last_text, strlen(last_text) + 1);
}

GC_API GCGetInfo(int32_t command, INFO_DATATYPE *type, void *buffer, size_t *size)
{
    Answer to = {type, buffer, size};
    switch (command) {
    case TL_INFO_ID:
    case TL_INFO_NAME:
    case TL_INFO_PATHNAME: return give_text(to, "aravis_producer.cti");
    case TL_INFO_VENDOR: return give_text(to, "VQI tests");
    case TL_INFO_MODEL:
    case TL_INFO_DISPLAYNAME: return give_text(to, "aravis behind GenTL");
    case TL_INFO_VERSION: return give_text(to, "1");
    case TL_INFO_TLTYPE: return give_text(to, TLTYPE);
    case TL_INFO_CHAR_ENCODING: return give_i32(to, 0);
    case TL_INFO_GENTL_VER_MAJOR: return give_u32(to, 1);
    case TL_INFO_GENTL_VER_MINOR: return give_u32(to, 6);
    default: return fail(GC_ERR_NOT_IMPLEMENTED, "no such system information");
    }
}

/* --- system and interface ----------------------------------------------------------------- */

GC_API TLOpen(void **system)
{
    *system = &system_module;
    return GC_ERR_SUCCESS;
}

GC_API TLClose(void *system)
{
    return system == &system_module ? GC_ERR_SUCCESS : GC_ERR_INVALID_HANDLE;
}

GC_API TLGetInfo(void *system, int32_t command, INFO_DATATYPE *type, void *buffer, size_t *size)
{
    (void)system;
    return GCGetInfo(command, type, buffer, size);
}

GC_API TLUpdateInterfaceList(void *system, bool8_t *is_changed, uint64_t timeout_ms)
{
    (void)system, (void)timeout_ms;
    if (is_changed)
        *is_changed = false;
    return GC_ERR_SUCCESS;
}

GC_API TLGetNumInterfaces(void *system, uint32_t *count)
{
    (void)system;
    *count = 1;
    return GC_ERR_SUCCESS;
}

GC_API TLGetInterfaceID(void *system, uint32_t index, char *id, size_t *size)
{
    (void)system;
    return index ? GC_ERR_INVALID_INDEX : give_text((Answer){NULL, id, size}, "GigE Vision");
}

GC_API IFGetInfo(void *interface, int32_t command, INFO_DATATYPE *type, void *buffer, size_t *size)
{
    (void)interface;
    Answer to = {type, buffer, size};
    switch (command) {
    case INTERFACE_INFO_ID:
    case INTERFACE_INFO_DISPLAYNAME: return give_text(to, "GigE Vision");
    case INTERFACE_INFO_TLTYPE: return give_text(to, TLTYPE);
    default: return fail(GC_ERR_NOT_IMPLEMENTED, "no such interface information");
    }
}

GC_API TLGetInterfaceInfo(void *system, const char *id, int32_t command, INFO_DATATYPE *type,
                          void *buffer, size_t *size)
{
    (void)system, (void)id;
    return IFGetInfo(&interface_module, command, type, buffer, size);
}

GC_API TLOpenInterface(void *system, const char *id, void **interface)
{
    (void)system, (void)id;
    *interface = &interface_module;
    return GC_ERR_SUCCESS;
}

GC_API IFClose(void *interface)
{
    return interface == &interface_module ? GC_ERR_SUCCESS : GC_ERR_INVALID_HANDLE;
}

static bool is_any_open(void)
{
    for (unsigned i = 0; i < n_cameras; i++)
        if (cameras[i].arv)
            return true;
    return false;
}

static void describe(Camera *camera, unsigned index)
{
    *camera = (Camera){.device = {DEVICE, camera},
                       .port = {REMOTE_PORT, camera},
                       .data_stream = {STREAM, camera},
                       .event = {EVENT, camera}};
    g_strlcpy(camera->id, arv_get_device_id(index), sizeof camera->id);
    g_strlcpy(camera->vendor, arv_get_device_vendor(index), sizeof camera->vendor);
    g_strlcpy(camera->model, arv_get_device_model(index), sizeof camera->model);
    g_strlcpy(camera->serial, arv_get_device_serial_nbr(index), sizeof camera->serial);
}

GC_API IFUpdateDeviceList(void *interface, bool8_t *is_changed, uint64_t timeout_ms)
{
    (void)interface, (void)timeout_ms;
    if (is_changed)
        *is_changed = true;
    if (is_any_open()) /* handles point into the list */
        return GC_ERR_SUCCESS;
    arv_update_device_list();
    n_cameras = MIN(arv_get_n_devices(), MAX_CAMERAS);
    for (unsigned i = 0; i < n_cameras; i++)
        describe(&cameras[i], i);
    return GC_ERR_SUCCESS;
}

GC_API IFGetNumDevices(void *interface, uint32_t *count)
{
    (void)interface;
    *count = n_cameras;
    return GC_ERR_SUCCESS;
}

GC_API IFGetDeviceID(void *interface, uint32_t index, char *id, size_t *size)
{
    (void)interface;
    if (index >= n_cameras)
        return fail(GC_ERR_INVALID_INDEX, "no such camera");
    return give_text((Answer){NULL, id, size}, cameras[index].id);
}

GC_API DevGetInfo(void *device, int32_t command, INFO_DATATYPE *type, void *buffer, size_t *size)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    Answer to = {type, buffer, size};
    switch (command) {
    case DEVICE_INFO_ID: return give_text(to, camera->id);
    case DEVICE_INFO_VENDOR: return give_text(to, camera->vendor);
    case DEVICE_INFO_MODEL:
    case DEVICE_INFO_DISPLAYNAME: return give_text(to, camera->model);
    case DEVICE_INFO_TLTYPE: return give_text(to, TLTYPE);
    case DEVICE_INFO_ACCESS_STATUS:
        return give_i32(to, camera->is_lost ? DEVICE_ACCESS_STATUS_NOACCESS
                            : camera->arv   ? DEVICE_ACCESS_STATUS_OPEN_READWRITE
                                            : DEVICE_ACCESS_STATUS_READWRITE);
    case DEVICE_INFO_SERIAL_NUMBER: return give_text(to, camera->serial);
    case DEVICE_INFO_TIMESTAMP_FREQUENCY: return give_u64(to, 1000000000);
    default: return fail(GC_ERR_NOT_AVAILABLE, "the camera does not say");
    }
}

static Camera *find(const char *id)
{
    for (unsigned i = 0; i < n_cameras; i++)
        if (!strcmp(cameras[i].id, id))
            return &cameras[i];
    return NULL;
}

GC_API IFGetDeviceInfo(void *interface, const char *id, int32_t command, INFO_DATATYPE *type,
                       void *buffer, size_t *size)
{
    (void)interface;
    Camera *camera = find(id);
    if (!camera)
        return fail(GC_ERR_INVALID_ID, "no such camera");
    return DevGetInfo(&camera->device, command, type, buffer, size);
}

/* --- camera and its port ------------------------------------------------------------------ */

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

GC_API IFOpenDevice(void *interface, const char *id, int32_t flags, void **device)
{
    (void)interface, (void)flags;
    Camera *camera = find(id);
    if (!camera)
        return fail(GC_ERR_INVALID_ID, "no such camera");
    if (camera->arv)
        return fail(GC_ERR_RESOURCE_IN_USE, "the camera is open already");
    GError *error = NULL;
    camera->arv = arv_open_device(id, &error);
    if (!camera->arv)
        return fail_with(GC_ERR_IO, error);
    if (!arv_gv_device_is_controller(ARV_GV_DEVICE(camera->arv))) {
        close_camera(camera);
        return fail(GC_ERR_ACCESS_DENIED, "another program controls the camera");
    }
    camera->is_lost = false;
    g_signal_connect(camera->arv, "control-lost", G_CALLBACK(lose), camera);
    *device = &camera->device;
    return GC_ERR_SUCCESS;
}

GC_API DevClose(void *device)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    close_camera(camera);
    return GC_ERR_SUCCESS;
}

GC_API DevGetPort(void *device, void **port)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    *port = &camera->port;
    return GC_ERR_SUCCESS;
}

GC_API GCGetPortInfo(void *port, int32_t command, INFO_DATATYPE *type, void *buffer, size_t *size)
{
    Answer to = {type, buffer, size};
    Module *module = port;
    switch (command) {
    case PORT_INFO_ID:
    case PORT_INFO_MODEL:
    case PORT_INFO_VENDOR: return give_text(to, "aravis");
    case PORT_INFO_TLTYPE: return give_text(to, TLTYPE);
    case PORT_INFO_MODULE:
    case PORT_INFO_PORTNAME:
        return give_text(to, module->kind == REMOTE_PORT ? "Device" : "TLModule");
    case PORT_INFO_LITTLE_ENDIAN:
    case PORT_INFO_ACCESS_NA: return give_bool(to, false);
    case PORT_INFO_BIG_ENDIAN: return give_bool(to, true);
    case PORT_INFO_ACCESS_READ:
    case PORT_INFO_ACCESS_WRITE: return give_bool(to, module->kind == REMOTE_PORT);
    case PORT_INFO_ACCESS_NI: return give_bool(to, module->kind != REMOTE_PORT);
    default: return fail(GC_ERR_NOT_AVAILABLE, "no such port information");
    }
}

GC_API GCGetNumPortURLs(void *port, uint32_t *count)
{
    CAMERA_OR_FAIL(camera, port, REMOTE_PORT);
    *count = 1;
    return GC_ERR_SUCCESS;
}

GC_API GCGetPortURLInfo(void *port, uint32_t index, int32_t command, INFO_DATATYPE *type,
                        void *buffer, size_t *size)
{
    CAMERA_OR_FAIL(camera, port, REMOTE_PORT);
    if (index || command != URL_INFO_URL)
        return fail(GC_ERR_NOT_AVAILABLE, "only the URL of the one file is known");
    size_t xml_size = 0;
    arv_device_get_genicam_xml(camera->arv, &xml_size);
    char url[96];
    snprintf(url, sizeof url, "Local:camera.xml;%" PRIX64 ";%zX", XML_ADDRESS, xml_size);
    return give_text((Answer){type, buffer, size}, url);
}

static GC_ERROR read_xml(Camera *camera, uint64_t offset, void *buffer, size_t size)
{
    size_t xml_size = 0;
    const char *xml = arv_device_get_genicam_xml(camera->arv, &xml_size);
    if (offset > xml_size || size > xml_size - offset)
        return fail(GC_ERR_IO, "read beyond the XML");
    memcpy(buffer, xml + offset, size);
    return GC_ERR_SUCCESS;
}

/* After one time-out every access would take its seconds again. */
static GC_ERROR access_failed(Camera *camera, GError *error)
{
    if (error && error->code == ARV_DEVICE_ERROR_TIMEOUT)
        camera->is_lost = true;
    return fail_with(GC_ERR_IO, error);
}

GC_API GCReadPort(void *port, uint64_t address, void *buffer, size_t *size)
{
    CAMERA_OR_FAIL(camera, port, REMOTE_PORT);
    if (address >= XML_ADDRESS)
        return read_xml(camera, address - XML_ADDRESS, buffer, *size);
    if (camera->is_lost)
        return fail(GC_ERR_IO, "the camera does not answer");
    GError *error = NULL;
    if (!arv_device_read_memory(camera->arv, address, (guint32)*size, buffer, &error))
        return access_failed(camera, error);
    return GC_ERR_SUCCESS;
}

GC_API GCWritePort(void *port, uint64_t address, const void *buffer, size_t *size)
{
    CAMERA_OR_FAIL(camera, port, REMOTE_PORT);
    if (camera->is_lost)
        return fail(GC_ERR_IO, "the camera does not answer");
    GError *error = NULL;
    if (!arv_device_write_memory(camera->arv, address, (guint32)*size, (void *)buffer, &error))
        return access_failed(camera, error);
    return GC_ERR_SUCCESS;
}

/* --- data stream -------------------------------------------------------------------------- */

GC_API DevGetNumDataStreams(void *device, uint32_t *count)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    *count = 1;
    return GC_ERR_SUCCESS;
}

GC_API DevGetDataStreamID(void *device, uint32_t index, char *id, size_t *size)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    return index ? GC_ERR_INVALID_INDEX : give_text((Answer){NULL, id, size}, STREAM_NAME);
}

GC_API DevOpenDataStream(void *device, const char *id, void **data_stream)
{
    CAMERA_OR_FAIL(camera, device, DEVICE);
    (void)id;
    GError *error = NULL;
    /* A packet socket sees nothing on the loopback interface. */
    arv_gv_device_set_stream_options(ARV_GV_DEVICE(camera->arv),
                                     ARV_GV_STREAM_OPTION_PACKET_SOCKET_DISABLED);
    camera->stream = arv_device_create_stream(camera->arv, NULL, NULL, &error);
    if (!camera->stream)
        return fail_with(GC_ERR_IO, error);
    /* aravis's fake camera knows no resend. */
    g_object_set(camera->stream, "packet-resend", ARV_GV_STREAM_PACKET_RESEND_NEVER,
                 "socket-buffer", ARV_GV_STREAM_SOCKET_BUFFER_FIXED, "socket-buffer-size",
                 SOCKET_BYTES, NULL);
    camera->is_thread_running = true;
    *data_stream = &camera->data_stream;
    return GC_ERR_SUCCESS;
}

GC_API DSGetInfo(void *data_stream, int32_t command, INFO_DATATYPE *type, void *buffer,
                 size_t *size)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    Answer to = {type, buffer, size};
    switch (command) {
    case STREAM_INFO_ID: return give_text(to, STREAM_NAME);
    case STREAM_INFO_NUM_ANNOUNCED: return give_size(to, camera->announced);
    case STREAM_INFO_IS_GRABBING: return give_bool(to, camera->is_grabbing);
    case STREAM_INFO_DEFINES_PAYLOADSIZE: return give_bool(to, false);
    case STREAM_INFO_TLTYPE: return give_text(to, TLTYPE);
    case STREAM_INFO_BUF_ANNOUNCE_MIN:
    case STREAM_INFO_BUF_ALIGNMENT: return give_size(to, 1);
    default: return fail(GC_ERR_NOT_AVAILABLE, "no such stream information");
    }
}

GC_API DSAnnounceBuffer(void *data_stream, void *base, size_t size, void *user, void **handle)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    Buffer *buffer = g_new0(Buffer, 1);
    *buffer = (Buffer){.base = base, .user = user, .size = size};
    buffer->arv = arv_buffer_new_full(size, base, buffer, NULL);
    camera->announced++;
    *handle = buffer;
    return GC_ERR_SUCCESS;
}

GC_API DSQueueBuffer(void *data_stream, void *handle)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    ArvBuffer *arv = ((Buffer *)handle)->arv;
    arv_buffer_set_frame_id(arv, NO_FRAME_ID);
    arv_buffer_set_timestamp(arv, 0);
    arv_stream_push_buffer(camera->stream, g_object_ref(arv));
    return GC_ERR_SUCCESS;
}

GC_API DSStartAcquisition(void *data_stream, int32_t flags, uint64_t frames)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    (void)flags, (void)frames;
    if (!camera->is_thread_running)
        arv_stream_start_thread(camera->stream);
    camera->is_thread_running = camera->is_grabbing = true;
    return GC_ERR_SUCCESS;
}

/* Gives the stream's references back; the buffers stay announced and may be queued again. */
GC_API DSFlushQueue(void *data_stream, int32_t operation)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    (void)operation;
    if (camera->is_thread_running && !camera->is_grabbing)
        arv_stream_stop_thread(camera->stream, TRUE);
    camera->is_thread_running = camera->is_grabbing;
    return GC_ERR_SUCCESS;
}

GC_API DSStopAcquisition(void *data_stream, int32_t flags)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    (void)flags;
    camera->is_grabbing = false;
    return DSFlushQueue(data_stream, 0);
}

GC_API DSRevokeBuffer(void *data_stream, void *handle, void **base, void **user)
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
    return GC_ERR_SUCCESS;
}

GC_API DSClose(void *data_stream)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    close_stream(camera);
    return GC_ERR_SUCCESS;
}

static GC_ERROR give_image_info(Answer to, int32_t command, ArvBuffer *image)
{
    if (arv_buffer_get_status(image) != ARV_BUFFER_STATUS_SUCCESS)
        return fail(GC_ERR_NOT_AVAILABLE, "aravis tells the layout of complete frames only");
    switch (command) {
    case BUFFER_INFO_WIDTH: return give_size(to, (size_t)arv_buffer_get_image_width(image));
    case BUFFER_INFO_HEIGHT:
    case BUFFER_INFO_DELIVERED_IMAGEHEIGHT:
        return give_size(to, (size_t)arv_buffer_get_image_height(image));
    case BUFFER_INFO_PIXELFORMAT: return give_u64(to, arv_buffer_get_image_pixel_format(image));
    case BUFFER_INFO_PIXELFORMAT_NAMESPACE: return give_u64(to, PIXELFORMAT_NAMESPACE_PFNC_32BIT);
    case BUFFER_INFO_XPADDING: {
        int x_padding = 0, y_padding = 0;
        arv_buffer_get_image_padding(image, &x_padding, &y_padding);
        return give_size(to, (size_t)x_padding);
    }
    default: return fail(GC_ERR_NOT_AVAILABLE, "no such buffer information");
    }
}

GC_API DSGetBufferInfo(void *data_stream, void *handle, int32_t command, INFO_DATATYPE *type,
                       void *buffer, size_t *size)
{
    CAMERA_OR_FAIL(camera, data_stream, STREAM);
    Answer to = {type, buffer, size};
    Buffer *self = handle;
    bool is_complete = arv_buffer_get_status(self->arv) == ARV_BUFFER_STATUS_SUCCESS;
    switch (command) {
    case BUFFER_INFO_BASE: return give_pointer(to, self->base);
    case BUFFER_INFO_SIZE: return give_size(to, self->size);
    case BUFFER_INFO_USER_PTR: return give_pointer(to, self->user);
    case BUFFER_INFO_IS_INCOMPLETE: return give_bool(to, !is_complete);
    case BUFFER_INFO_TLTYPE: return give_text(to, TLTYPE);
    case BUFFER_INFO_SIZE_FILLED:
    case BUFFER_INFO_DATA_SIZE: return give_size(to, self->size);
    case BUFFER_INFO_FRAMEID: return give_u64(to, self->frame_id);
    case BUFFER_INFO_IMAGEOFFSET: return give_size(to, 0);
    case BUFFER_INFO_PAYLOADTYPE: return give_size(to, PAYLOAD_TYPE_IMAGE);
    case BUFFER_INFO_TIMESTAMP:
    case BUFFER_INFO_TIMESTAMP_NS: return give_u64(to, arv_buffer_get_timestamp(self->arv));
    case BUFFER_INFO_CONTAINS_CHUNKDATA: return give_bool(to, false);
    default: return give_image_info(to, command, self->arv);
    }
}

GC_API DSGetBufferChunkData(void *data_stream, void *handle, SINGLE_CHUNK_DATA *chunks,
                            size_t *count)
{
    (void)data_stream, (void)handle, (void)chunks, (void)count;
    return fail(GC_ERR_NO_DATA, "no chunks");
}

/* --- the new-buffer event ----------------------------------------------------------------- */

GC_API GCRegisterEvent(void *module, int32_t event_id, void **event)
{
    if (event_id != EVENT_NEW_BUFFER)
        return fail(GC_ERR_NOT_IMPLEMENTED, "only the new-buffer event");
    CAMERA_OR_FAIL(camera, module, STREAM);
    *event = &camera->event;
    return GC_ERR_SUCCESS;
}

GC_API GCUnregisterEvent(void *module, int32_t event_id)
{
    (void)module, (void)event_id;
    return GC_ERR_SUCCESS;
}

GC_API EventGetInfo(void *event, int32_t command, INFO_DATATYPE *type, void *buffer, size_t *size)
{
    CAMERA_OR_FAIL(camera, event, EVENT);
    Answer to = {type, buffer, size};
    int filling = 0, filled = 0;
    switch (command) {
    case EVENT_EVENT_TYPE: return give_i32(to, EVENT_NEW_BUFFER);
    case EVENT_NUM_IN_QUEUE:
        arv_stream_get_n_buffers(camera->stream, &filling, &filled);
        return give_size(to, (size_t)filled);
    case EVENT_NUM_FIRED: return give_u64(to, camera->fired);
    case EVENT_SIZE_MAX:
    case EVENT_INFO_DATA_SIZE_MAX: return give_size(to, 2 * sizeof(void *));
    default: return fail(GC_ERR_NOT_IMPLEMENTED, "no such event information");
    }
}

/* aravis takes the id from the leader alone; where that was lost, the frame is the next in order.
 */
static uint64_t frame_id_of(Camera *camera, ArvBuffer *arv)
{
    uint64_t id = arv_buffer_get_frame_id(arv);
    if (id == NO_FRAME_ID)
        id = camera->last_frame_id % LAST_FRAME_ID + 1;
    camera->last_frame_id = id;
    return id;
}

GC_API EventGetData(void *event, void *data, size_t *size, uint64_t timeout_ms)
{
    CAMERA_OR_FAIL(camera, event, EVENT);
    if (*size < 2 * sizeof(void *))
        return fail(GC_ERR_BUFFER_TOO_SMALL, "the buffer is too small");
    uint64_t most_ms = G_MAXINT64 / 1000;
    ArvBuffer *arv =
        timeout_ms ? arv_stream_timeout_pop_buffer(camera->stream, 1000 * MIN(timeout_ms, most_ms))
                   : arv_stream_try_pop_buffer(camera->stream);
    if (!arv)
        return fail(GC_ERR_TIMEOUT, "no buffer was filled in time");
    Buffer *buffer = (Buffer *)arv_buffer_get_user_data(arv);
    buffer->frame_id = frame_id_of(camera, arv);
    g_object_unref(arv);
    camera->fired++;
    void *pair[2] = {buffer, buffer->user};
    return give((Answer){NULL, data, size}, INFO_DATATYPE_PTR, pair, sizeof pair);
}

GC_API EventFlush(void *event)
{
    (void)event; /* DSFlushQueue has emptied the queue */
    return GC_ERR_SUCCESS;
}
