/* One camera: the belt under it, its encoder and triggers, and the frames it makes of them. */
#ifndef VQI_CAMERA_H
#define VQI_CAMERA_H

#include "features.h"
#include "gentl.h"
#include "scene.h"
#include "stream.h"

/* A time in which the belt stands still, from when it began to run. */
typedef struct {
    int64_t from_ns, for_ns;
} BeltStop;

enum { MOST_STOPS = TEXT_BYTES / 4 /* a stop takes at least "0+1," */ };

/* Where the belt is: `row` at `since_ns`, and how it moves from there. */
typedef struct {
    int64_t since_ns, began_ns;
    double row, rows_per_s, jitter;
    BeltStop stops[MOST_STOPS]; /* ascending, disjoint */
    int stop_count;
} Belt;

/* A frame in the making. */
typedef struct {
    int64_t number;          /* of the belt, from 0 */
    int64_t rows, rows_kept; /* exposed so far; those of them that go into the buffer */
    uint64_t id;
    int64_t encoder_value, counter_value, lines;
    bool is_incomplete, is_wrong_height, is_late, is_duplicated;
    Buffer *buffer; /* NULL: the frame is lost */
} Frame;

typedef struct {
    pthread_mutex_t lock;
    pthread_cond_t wake;
    pthread_t thread;
    bool is_closing, is_acquiring, is_gone;
    char serial[64];
    char other_serial_path[256];
    int64_t opened_ns;
    Value values[FEATURE_COUNT][MOST_SELECTED];
    char texts[FEATURE_COUNT][TEXT_BYTES];
    Stream stream;
    Scene scene;
    Sensor sensor;
    bool is_sensor_set;
    Belt belt;
    /* Free-running, scan line `clock_line` is seen at `clock_ns`, each further one a period later */
    int64_t clock_ns, clock_line;
    double line_period_ns;
    int64_t line; /* the next scan line's number, of the clock, of the encoder or of triggers */
    int64_t highest_pulse, ready_ns;
    int64_t encoder_zero, counter_zero;
    int64_t software_triggers[3], software_ns;
    bool is_framing, is_in_step, was_covered;
    Frame frame;
    int64_t last_number, frames_left;
    uint64_t next_id;
    Buffer *held; /* a late frame */
    bool is_held_twice;
    int64_t held_until_ns;
    double stuck_exposure_us; /* 0: not stuck */
} Camera;

/* The error of this thread: its code, and a text that says what is wrong. */
__attribute__((format(printf, 2, 3))) GC_ERROR fail(GC_ERROR code, const char *format, ...);

int64_t now_ns(void);
/* NULL if memory or threads are short. A file at `other_serial_path` makes another serial known. */
Camera *camera_open(const char *serial, const char *other_serial_path);
void camera_close(Camera *camera);
GC_ERROR camera_read(Camera *camera, uint64_t address, void *bytes, size_t *count);
GC_ERROR camera_write(Camera *camera, uint64_t address, const void *bytes, size_t count);
size_t camera_payload_bytes(Camera *camera);
/* Discards the frame that is being made, so that its buffer can be taken away. */
void camera_release_buffer(Camera *camera);

#endif
