#include "stream.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void append(Queue *queue, Buffer *buffer, Place place)
{
    buffer->place = place;
    buffer->next = NULL;
    if (queue->last)
        queue->last->next = buffer;
    else
        queue->first = buffer;
    queue->last = buffer;
    queue->count++;
}

static Buffer *pop(Queue *queue, Place place)
{
    Buffer *buffer = queue->first;
    if (!buffer)
        return NULL;
    queue->first = buffer->next;
    if (!queue->first)
        queue->last = NULL;
    queue->count--;
    buffer->place = place;
    return buffer;
}

static void drop(Queue *queue, Buffer *wanted)
{
    Queue kept = {0};
    for (Buffer *buffer; (buffer = pop(queue, wanted->place));)
        if (buffer != wanted)
            append(&kept, buffer, wanted->place);
    *queue = kept;
}

static void move_all(Queue *from, Queue *to, Place place)
{
    for (Buffer *buffer; (buffer = pop(from, WITH_CONSUMER));)
        if (to)
            append(to, buffer, place);
}

void stream_init(Stream *stream)
{
    memset(stream, 0, sizeof *stream);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&stream->lock, NULL);
    pthread_cond_init(&stream->filled, &attributes);
    pthread_condattr_destroy(&attributes);
}

void stream_end_waiting(Stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    stream->is_ending = true;
    pthread_cond_broadcast(&stream->filled);
    while (stream->waiting)
        pthread_cond_wait(&stream->filled, &stream->lock);
    stream->is_ending = false;
    pthread_mutex_unlock(&stream->lock);
}

void stream_destroy(Stream *stream)
{
    while (stream->announced)
        stream_revoke(stream, stream->announced);
    pthread_cond_destroy(&stream->filled);
    pthread_mutex_destroy(&stream->lock);
}

Buffer *stream_announce(Stream *stream, void *base, size_t size, void *user_pointer)
{
    Buffer *buffer = calloc(1, sizeof *buffer);
    if (!buffer)
        return NULL;
    buffer->is_owned = base == NULL;
    buffer->base = base ? base : malloc(size);
    if (!buffer->base) {
        free(buffer);
        return NULL;
    }
    buffer->size = size;
    buffer->user_pointer = user_pointer;
    pthread_mutex_lock(&stream->lock);
    buffer->next_announced = stream->announced;
    stream->announced = buffer;
    stream->announced_count++;
    pthread_mutex_unlock(&stream->lock);
    return buffer;
}

bool stream_has(Stream *stream, const void *wanted)
{
    pthread_mutex_lock(&stream->lock);
    const Buffer *buffer = stream->announced;
    while (buffer && buffer != wanted)
        buffer = buffer->next_announced;
    pthread_mutex_unlock(&stream->lock);
    return buffer != NULL;
}

GC_ERROR stream_queue(Stream *stream, Buffer *buffer)
{
    pthread_mutex_lock(&stream->lock);
    bool is_free = buffer->place == WITH_CONSUMER;
    if (is_free) {
        buffer->frame.bytes = 0;
        append(&stream->input, buffer, IN_INPUT);
    }
    pthread_mutex_unlock(&stream->lock);
    return is_free ? GC_ERR_SUCCESS : GC_ERR_RESOURCE_IN_USE;
}

GC_ERROR stream_revoke(Stream *stream, Buffer *buffer)
{
    pthread_mutex_lock(&stream->lock);
    if (buffer->place == FILLING) {
        pthread_mutex_unlock(&stream->lock);
        return GC_ERR_BUSY;
    }
    if (buffer->place == IN_INPUT)
        drop(&stream->input, buffer);
    else if (buffer->place == IN_OUTPUT)
        drop(&stream->output, buffer);
    Buffer **link = &stream->announced;
    while (*link != buffer)
        link = &(*link)->next_announced;
    *link = buffer->next_announced;
    stream->announced_count--;
    pthread_mutex_unlock(&stream->lock);
    if (buffer->is_owned)
        free(buffer->base);
    free(buffer);
    return GC_ERR_SUCCESS;
}

GC_ERROR stream_flush(Stream *stream, ACQ_QUEUE_TYPE how)
{
    GC_ERROR result = GC_ERR_SUCCESS;
    pthread_mutex_lock(&stream->lock);
    if (how == ACQ_QUEUE_INPUT_TO_OUTPUT) {
        move_all(&stream->input, &stream->output, IN_OUTPUT);
        pthread_cond_broadcast(&stream->filled);
    } else if (how == ACQ_QUEUE_OUTPUT_DISCARD) {
        move_all(&stream->output, NULL, WITH_CONSUMER);
    } else if (how == ACQ_QUEUE_ALL_TO_INPUT || how == ACQ_QUEUE_UNQUEUED_TO_INPUT) {
        if (how == ACQ_QUEUE_ALL_TO_INPUT)
            move_all(&stream->output, NULL, WITH_CONSUMER);
        for (Buffer *buffer = stream->announced; buffer; buffer = buffer->next_announced)
            if (buffer->place == WITH_CONSUMER)
                append(&stream->input, buffer, IN_INPUT);
    } else if (how == ACQ_QUEUE_ALL_DISCARD) {
        move_all(&stream->input, NULL, WITH_CONSUMER);
        move_all(&stream->output, NULL, WITH_CONSUMER);
    } else {
        result = GC_ERR_INVALID_PARAMETER;
    }
    pthread_mutex_unlock(&stream->lock);
    return result;
}

Buffer *stream_take(Stream *stream)
{
    pthread_mutex_lock(&stream->lock);
    Buffer *buffer = NULL;
    if (stream->is_grabbing && stream->remaining) {
        buffer = pop(&stream->input, FILLING);
        if (buffer)
            stream->started++;
        else
            stream->underruns++;
    }
    pthread_mutex_unlock(&stream->lock);
    return buffer;
}

void stream_give_back(Stream *stream, Buffer *buffer)
{
    pthread_mutex_lock(&stream->lock);
    append(&stream->input, buffer, IN_INPUT);
    pthread_mutex_unlock(&stream->lock);
}

void stream_deliver(Stream *stream, Buffer *buffer)
{
    pthread_mutex_lock(&stream->lock);
    buffer->is_new = true;
    append(&stream->output, buffer, IN_OUTPUT);
    stream->delivered++;
    stream->fired++;
    if (stream->remaining != GENTL_INFINITE)
        stream->remaining--;
    pthread_cond_broadcast(&stream->filled);
    pthread_mutex_unlock(&stream->lock);
}

static struct timespec after_ms(uint64_t timeout_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += (time_t)(timeout_ms / 1000);
    until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
    if (until.tv_nsec >= 1000000000) {
        until.tv_nsec -= 1000000000;
        until.tv_sec++;
    }
    return until;
}

GC_ERROR stream_wait(Stream *stream, uint64_t timeout_ms, Buffer **buffer)
{
    /* What no clock can count is forever. */
    bool is_endless = timeout_ms > 1000ull * 86400 * 365;
    struct timespec until = after_ms(is_endless ? 0 : timeout_ms);
    GC_ERROR result = GC_ERR_SUCCESS;
    pthread_mutex_lock(&stream->lock);
    stream->waiting++;
    while (!stream->output.first && !stream->is_killed && !stream->is_ending &&
           result == GC_ERR_SUCCESS) {
        if (is_endless)
            pthread_cond_wait(&stream->filled, &stream->lock);
        else if (pthread_cond_timedwait(&stream->filled, &stream->lock, &until) == ETIMEDOUT)
            result = GC_ERR_TIMEOUT;
    }
    if (stream->is_killed || stream->is_ending) {
        stream->is_killed = false;
        result = GC_ERR_ABORT;
    } else if (stream->output.first) {
        *buffer = pop(&stream->output, WITH_CONSUMER);
        result = GC_ERR_SUCCESS;
    }
    stream->waiting--;
    if (stream->is_ending)
        pthread_cond_broadcast(&stream->filled);
    pthread_mutex_unlock(&stream->lock);
    return result;
}
