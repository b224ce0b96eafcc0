/* Buffers on their way round: consumer, input pool, being filled, output queue, consumer. */
#ifndef VQI_STREAM_H
#define VQI_STREAM_H

#include <pthread.h>
#include <stdbool.h>

#include "features.h"
#include "gentl.h"

typedef enum { WITH_CONSUMER, IN_INPUT, FILLING, IN_OUTPUT } Place;

/* What a consumer may ask of the frame in a buffer. */
typedef struct {
    bool is_incomplete;
    uint64_t id, timestamp_ns, pixel_format;
    size_t width, height, offset_x, rows, bytes;
    size_t chunk_count;
    SINGLE_CHUNK_DATA chunks[MOST_SELECTED];
} FrameInfo;

typedef struct Buffer {
    struct Buffer *next; /* in its queue */
    struct Buffer *next_announced;
    Place place;
    uint8_t *base;
    size_t size;
    void *user_pointer;
    bool is_owned; /* allocated here */
    bool is_new;
    FrameInfo frame;
} Buffer;

typedef struct {
    Buffer *first, *last;
    size_t count;
} Queue;

typedef struct {
    pthread_mutex_t lock; /* taken after the camera's, where both are */
    pthread_cond_t filled;
    Buffer *announced;
    size_t announced_count;
    Queue input, output;
    bool is_grabbing, is_killed, is_ending;
    int waiting; /* consumers in stream_wait */
    uint64_t remaining, delivered, underruns, started, fired;
} Stream;

void stream_init(Stream *stream);
void stream_destroy(Stream *stream);
Buffer *stream_announce(Stream *stream, void *base, size_t size, void *user_pointer);
bool stream_has(Stream *stream, const void *buffer);
GC_ERROR stream_queue(Stream *stream, Buffer *buffer);
/* GC_ERR_BUSY while the buffer is being filled. */
GC_ERROR stream_revoke(Stream *stream, Buffer *buffer);
GC_ERROR stream_flush(Stream *stream, ACQ_QUEUE_TYPE how);

/* The next buffer to fill; none: an underrun. */
Buffer *stream_take(Stream *stream);
void stream_give_back(Stream *stream, Buffer *buffer);
void stream_deliver(Stream *stream, Buffer *buffer);
/* Sends away whoever waits; returns when they are gone. */
void stream_end_waiting(Stream *stream);
/* Waits for a filled buffer: GC_ERR_TIMEOUT, GC_ERR_ABORT after EventKill. */
GC_ERROR stream_wait(Stream *stream, uint64_t timeout_ms, Buffer **buffer);

#endif
