#include "camera.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { LINE_START, FRAME_START, FRAME_ACTIVE };
enum { FROM_SOFTWARE, FROM_LINE0, FROM_ENCODER0 };
enum { RISING_EDGE, FALLING_EDGE, LEVEL_HIGH, LEVEL_LOW };
enum { FORWARD, STOPPED, REVERSE };
enum { POSITION_UP, DIRECTION_UP, MOTION };
enum { SINGLE_FRAME, MULTI_FRAME };

static const int64_t NEVER = INT64_MAX, SLICE_NS = 4000000, LATE_NS = 300000000;
static const double SENSOR_LINES_PER_S = 200000;
static const double LONGEST_S = 1e8; /* no belt is watched for years */
/* A scan line falls on the row it is nearest above; far less than a row, far more than rounding. */
static const double ROW_TOLERANCE = 1e-3;

/* One scan line to come: when it is seen and in memory, which row of the belt, its number. */
typedef struct {
    int64_t seen_ns, done_ns, number, next_number;
    double row;
} ScanLine;

int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t floor_div(int64_t number, int64_t by) { return number / by - (number % by < 0); }

#define INTEGER_OF(camera, name) ((camera)->values[F_##name][0].integer)
#define REAL_OF(camera, name) ((camera)->values[F_##name][0].real)
#define TRIGGER(camera, name, selector) ((camera)->values[F_##name][selector].integer)

static bool is_triggered(const Camera *camera, int selector)
{
    return TRIGGER(camera, TriggerMode, selector) == 1;
}

static int selected(const Camera *camera, FeatureId id)
{
    FeatureId selector = features[id].selector;
    return selector == F_None ? 0 : (int)camera->values[selector][0].integer;
}

/* --- belt and encoder --- */

/* How far wandering speed has carried the belt from where even speed would have, in seconds. */
static double wander_s(const Belt *belt, double s)
{
    const double slow = 2 * M_PI * 1.9, fast = 2 * M_PI * 7.3;
    return belt->jitter * (0.6 * (1 - cos(slow * s)) / slow + 0.4 * (1 - cos(fast * s)) / fast);
}

/* How long the belt stood still in its stops until a moment. */
static int64_t stood_ns(const Belt *belt, int64_t ns)
{
    int64_t stood = 0, age = ns - belt->began_ns;
    for (int i = 0; i < belt->stop_count && belt->stops[i].from_ns < age; i++) {
        int64_t inside = age - belt->stops[i].from_ns, whole = belt->stops[i].for_ns;
        stood += inside < whole ? inside : whole;
    }
    return stood;
}

/* When a moment comes that lies behind `since_ns`, with the stops until then. */
static int64_t after_stops(const Belt *belt, int64_t ns)
{
    for (int i = 0; i < belt->stop_count; i++) {
        int64_t from = belt->began_ns + belt->stops[i].from_ns;
        int64_t until = from + belt->stops[i].for_ns;
        from = from > belt->since_ns ? from : belt->since_ns;
        if (ns <= from)
            break;
        ns += until > from ? until - from : 0;
    }
    return ns;
}

static double belt_row(const Belt *belt, int64_t ns)
{
    int64_t stood = stood_ns(belt, ns) - stood_ns(belt, belt->since_ns);
    double s = (double)(ns - belt->since_ns - stood) * 1e-9;
    return belt->row + belt->rows_per_s * (s + wander_s(belt, s));
}

/* When the belt comes to a row; NEVER if it does not move. */
static int64_t belt_time(const Belt *belt, double row)
{
    if (belt->rows_per_s == 0)
        return NEVER;
    double even_s = (row - belt->row) / belt->rows_per_s, s = even_s;
    for (int i = 0; belt->jitter > 0 && i < 40; i++)
        s = even_s - wander_s(belt, s);
    if (s > LONGEST_S)
        return NEVER;
    return after_stops(belt, belt->since_ns + llround(fmax(s, -LONGEST_S) * 1e9));
}

static void set_belt(Camera *camera, int64_t now)
{
    Belt *belt = &camera->belt;
    int64_t epoch = INTEGER_OF(camera, SimBeltEpoch), way = INTEGER_OF(camera, SimBeltDirection);
    bool is_from_epoch = epoch > 0 && !camera->is_acquiring;
    belt->row = is_from_epoch ? 0 : belt_row(belt, now);
    belt->since_ns = is_from_epoch ? epoch : now;
    if (!camera->is_acquiring)
        belt->began_ns = belt->since_ns;
    belt->jitter = REAL_OF(camera, SimBeltJitter) / 100;
    belt->rows_per_s = REAL_OF(camera, SimBeltSpeed) / camera->scene.pixel_pitch_mm;
    belt->rows_per_s *= way == STOPPED ? 0 : way == REVERSE ? -1 : 1;
}

/* Counts a row of belt travel makes; 0 if the encoder's signals are not connected. */
static double counts_per_row(const Camera *camera)
{
    int64_t a = INTEGER_OF(camera, EncoderSourceA), b = INTEGER_OF(camera, EncoderSourceB);
    double counts = REAL_OF(camera, SimEncoderResolution) * camera->scene.pixel_pitch_mm;
    counts *= INTEGER_OF(camera, EncoderMode) == 1 ? 4 : 1;
    if (a == 0 || a == b)
        return 0;
    if (b == 0)
        return camera->belt.rows_per_s < 0 ? -counts : counts;
    return a == 2 ? -counts : counts;
}

static int64_t counts_at(const Camera *camera, double row)
{
    return (int64_t)floor(row * counts_per_row(camera) + ROW_TOLERANCE);
}

static double barrier_row(const Camera *camera, double row)
{
    return row + REAL_OF(camera, SimBarrierDistance) / camera->scene.pixel_pitch_mm;
}

static int64_t whole_row(double row) { return (int64_t)floor(row + ROW_TOLERANCE); }

static int64_t plates_before(const Camera *camera, double row)
{
    return scene_edges_before(&camera->scene, whole_row(barrier_row(camera, row)));
}

static int64_t lines_at(const Camera *camera, double row)
{
    double cycles = row * REAL_OF(camera, SimEncoderResolution) * camera->scene.pixel_pitch_mm;
    double phase = cycles - floor(cycles);
    int64_t covered = scene_is_covered(&camera->scene, whole_row(barrier_row(camera, row)));
    return covered | (phase < 0.5) << 1 | (phase >= 0.25 && phase < 0.75) << 2;
}

/* --- limits --- */

static int64_t row_bytes(const Camera *camera)
{
    bool is_mono8 = INTEGER_OF(camera, PixelFormat) == PIXELFORMAT_MONO8;
    return INTEGER_OF(camera, Width) * (is_mono8 ? 1 : 2);
}

static int64_t chunk_count(const Camera *camera)
{
    int64_t count = 0;
    for (int i = 0; i < MOST_SELECTED && INTEGER_OF(camera, ChunkModeActive); i++)
        count += camera->values[F_ChunkEnable][i].integer;
    return count;
}

/* What sensor and link can do. */
static double greatest_line_rate(const Camera *camera)
{
    return fmin(SENSOR_LINES_PER_S, LINK_BYTES_PER_S / (double)row_bytes(camera));
}

static Value greatest(const Camera *camera, FeatureId id)
{
    int64_t sensor_width = INTEGER_OF(camera, SensorWidth);
    double rate = greatest_line_rate(camera);
    if (id == F_Width)
        return (Value){.integer = sensor_width - INTEGER_OF(camera, OffsetX)};
    if (id == F_OffsetX)
        return (Value){.integer = sensor_width - INTEGER_OF(camera, Width)};
    if (id == F_SimBeltEpoch)
        return (Value){.integer = now_ns() + 3600ll * 1000000000};
    if (id == F_AcquisitionLineRate)
        return (Value){.real = fmin(rate, 1e6 / REAL_OF(camera, ExposureTime))};
    if (id == F_ExposureTime && is_triggered(camera, LINE_START))
        return (Value){.real = 1e6};
    if (id == F_ExposureTime)
        return (Value){.real = 1e6 / REAL_OF(camera, AcquisitionLineRate)};
    return (Value){.integer = sensor_width - 1};
}

size_t camera_payload_bytes(Camera *camera)
{
    int64_t pixels = row_bytes(camera) * INTEGER_OF(camera, Height);
    return (size_t)(pixels + chunk_count(camera) * 8);
}

/* --- pixels --- */

static double temperature(const Camera *camera, int64_t now)
{
    double minutes = (double)(now - camera->opened_ns) / 60e9;
    return 40 + fmax(-60, fmin(60, REAL_OF(camera, SimTemperatureDrift) * minutes));
}

static Optics optics(const Camera *camera, int64_t now)
{
    double stuck_us = camera->stuck_exposure_us;
    double exposure_us = stuck_us > 0 ? stuck_us : REAL_OF(camera, ExposureTime);
    double factor = exposure_us / camera->scene.nominal_exposure_us;
    factor *= pow(10, REAL_OF(camera, Gain) / 20) * REAL_OF(camera, SimLightLevel) / 100;
    return (Optics){
        .factor = factor,
        .vignetting = REAL_OF(camera, SimVignetting) / 100,
        .non_uniformity = REAL_OF(camera, SimPixelNonUniformity) / 100,
        .dark_level = REAL_OF(camera, SimDarkLevel) * exp2((temperature(camera, now) - 40) / 8),
        .noise = REAL_OF(camera, SimNoise),
        .defocus = REAL_OF(camera, SimDefocus),
        .dirt_contrast = REAL_OF(camera, SimDirtContrast) / 100,
        .dirt_position = INTEGER_OF(camera, SimDirtPosition),
        .dirt_width = INTEGER_OF(camera, SimDirtWidth),
        .dead_pixel = INTEGER_OF(camera, SimDeadPixel),
    };
}

static void prepare_sensor(Camera *camera, int64_t now)
{
    Optics present = optics(camera, now);
    camera->is_sensor_set = sensor_set(&camera->sensor, &present, camera->scene.width);
}

static void expose(Camera *camera, const ScanLine *line)
{
    Frame *frame = &camera->frame;
    bool is_mono12 = INTEGER_OF(camera, PixelFormat) != PIXELFORMAT_MONO8;
    if (!camera->is_sensor_set)
        prepare_sensor(camera, line->seen_ns);
    if (camera->is_sensor_set)
        sensor_expose(&camera->sensor, &camera->scene, (Target)INTEGER_OF(camera, SimTarget),
                      whole_row(line->row), line->number, INTEGER_OF(camera, OffsetX),
                      INTEGER_OF(camera, Width), is_mono12,
                      frame->buffer->base + frame->rows * row_bytes(camera));
}

/* --- frames --- */

/* Whether a number stands in a list like "3, 17". */
static bool is_listed(const Camera *camera, FeatureId id, int64_t number)
{
    for (const char *at = camera->texts[id]; *at;) {
        char *end;
        if (strtoll(at, &end, 10) == number && end != at)
            return true;
        at = end + strspn(end, ", ");
    }
    return false;
}

static void tell_other_serial(const Camera *camera, int64_t now)
{
    FILE *file = fopen(camera->other_serial_path, "we");
    if (!file)
        return;
    fprintf(file, "%lld\n",
            (long long)(now + llround(REAL_OF(camera, SimOtherSerialDuration) * 1e9)));
    fclose(file);
}

static void drop_frame(Camera *camera)
{
    if (camera->frame.buffer)
        stream_give_back(&camera->stream, camera->frame.buffer);
    camera->frame.buffer = NULL;
    camera->is_framing = false;
}

/* Faults of a frame that begins. False if the device is gone with it. */
static bool apply_faults(Camera *camera, Frame *frame, int64_t height, int64_t now)
{
    int64_t number = frame->number;
    bool is_other = is_listed(camera, F_SimOtherSerialFrames, number);
    if (is_other)
        tell_other_serial(camera, now);
    if (is_other || is_listed(camera, F_SimDisconnectFrames, number)) {
        camera->is_gone = true;
        return false;
    }
    if (camera->stuck_exposure_us == 0 && is_listed(camera, F_SimStuckExposureFrames, number))
        camera->stuck_exposure_us = REAL_OF(camera, ExposureTime);
    frame->is_incomplete = is_listed(camera, F_SimIncompleteFrames, number);
    frame->is_wrong_height = is_listed(camera, F_SimWrongHeightFrames, number);
    frame->is_late = is_listed(camera, F_SimLateFrames, number);
    frame->is_duplicated = is_listed(camera, F_SimDuplicatedFrames, number);
    if (frame->is_incomplete || frame->is_wrong_height ||
        is_listed(camera, F_SimShortFrames, number))
        frame->rows_kept = height > 1 ? height / 2 : 1;
    return true;
}

static void begin_frame(Camera *camera, const ScanLine *line)
{
    int64_t height = INTEGER_OF(camera, Height), number = floor_div(line->number, height);
    bool is_first_of_number = number > camera->last_number;
    camera->frame = (Frame){.number = number, .rows_kept = height, .id = camera->next_id++};
    Frame *frame = &camera->frame;
    frame->encoder_value = counts_at(camera, line->row) - camera->encoder_zero;
    frame->counter_value = plates_before(camera, line->row) - camera->counter_zero;
    frame->lines = lines_at(camera, line->row);
    if (is_first_of_number) {
        camera->last_number = number;
        if (!apply_faults(camera, frame, height, line->done_ns))
            return;
    }
    camera->is_framing = camera->is_in_step = true;
    /* It warms slowly enough to look once a frame. */
    if (REAL_OF(camera, SimTemperatureDrift) != 0)
        camera->is_sensor_set = false;
    if (!is_first_of_number || !is_listed(camera, F_SimLostFrames, number))
        frame->buffer = stream_take(&camera->stream);
    if (frame->buffer && frame->buffer->size < camera_payload_bytes(camera)) {
        stream_give_back(&camera->stream, frame->buffer);
        frame->buffer = NULL;
    }
}

static void add_chunks(const Camera *camera, Buffer *buffer)
{
    const Frame *frame = &camera->frame;
    FrameInfo *info = &buffer->frame;
    const FeatureId ids[MOST_SELECTED] = {F_ChunkFrameID, F_ChunkTimestamp, F_ChunkEncoderValue,
                                          F_ChunkLineStatusAll, F_ChunkCounterValue};
    const int64_t contents[MOST_SELECTED] = {(int64_t)info->id, (int64_t)info->timestamp_ns,
                                             frame->encoder_value, frame->lines,
                                             frame->counter_value};
    if (frame->is_incomplete || !INTEGER_OF(camera, ChunkModeActive))
        return;
    for (int i = 0; i < MOST_SELECTED; i++) {
        if (!camera->values[F_ChunkEnable][i].integer)
            continue;
        memcpy(buffer->base + info->bytes, &contents[i], 8);
        info->chunks[info->chunk_count++] =
            (SINGLE_CHUNK_DATA){(uint64_t)ids[i], (ptrdiff_t)info->bytes, 8};
        info->bytes += 8;
    }
}

static void describe_frame(const Camera *camera, Buffer *buffer, int64_t timestamp_ns)
{
    const Frame *frame = &camera->frame;
    int64_t rows = frame->rows < frame->rows_kept ? frame->rows : frame->rows_kept;
    buffer->frame = (FrameInfo){
        .is_incomplete = frame->is_incomplete,
        .id = frame->id,
        .timestamp_ns = (uint64_t)timestamp_ns,
        .pixel_format = (uint64_t)INTEGER_OF(camera, PixelFormat),
        .width = (size_t)INTEGER_OF(camera, Width),
        .offset_x = (size_t)INTEGER_OF(camera, OffsetX),
        .height = (size_t)(frame->is_wrong_height ? rows : INTEGER_OF(camera, Height)),
        .rows = (size_t)rows,
        .bytes = (size_t)(rows * row_bytes(camera)),
    };
    add_chunks(camera, buffer);
}

static void deliver_twice(Camera *camera, Buffer *buffer)
{
    Buffer *copy = stream_take(&camera->stream);
    bool has_room = copy && copy->size >= buffer->frame.bytes;
    if (has_room) {
        memcpy(copy->base, buffer->base, buffer->frame.bytes);
        copy->frame = buffer->frame;
    } else if (copy) {
        stream_give_back(&camera->stream, copy);
    }
    stream_deliver(&camera->stream, buffer);
    if (has_room)
        stream_deliver(&camera->stream, copy);
}

static void deliver(Camera *camera, Buffer *buffer, bool is_twice)
{
    if (is_twice)
        deliver_twice(camera, buffer);
    else
        stream_deliver(&camera->stream, buffer);
}

static void finish_frame(Camera *camera, int64_t timestamp_ns)
{
    Frame *frame = &camera->frame;
    Buffer *buffer = frame->buffer;
    camera->is_framing = false;
    camera->software_triggers[FRAME_START] = 0;
    frame->buffer = NULL;
    if (buffer) {
        describe_frame(camera, buffer, timestamp_ns);
        if (frame->is_late) {
            camera->held = buffer;
            camera->is_held_twice = frame->is_duplicated;
            camera->held_until_ns = timestamp_ns + LATE_NS;
        } else {
            deliver(camera, buffer, frame->is_duplicated);
        }
    }
    if (camera->frames_left > 0 && --camera->frames_left == 0)
        camera->is_acquiring = false;
}

/* --- triggers --- */

static bool fires(Camera *camera, int selector, bool is_covered)
{
    bool was_covered = camera->was_covered;
    int64_t source = TRIGGER(camera, TriggerSource, selector);
    int64_t how = TRIGGER(camera, TriggerActivation, selector);
    if (source == FROM_ENCODER0)
        return true;
    if (source == FROM_SOFTWARE) {
        bool is_pending = camera->software_triggers[selector] > 0;
        camera->software_triggers[selector] = 0;
        return is_pending;
    }
    if (selector == FRAME_ACTIVE || how == LEVEL_HIGH || how == LEVEL_LOW)
        return is_covered == (how == RISING_EDGE || how == LEVEL_HIGH);
    return is_covered != was_covered && is_covered == (how == RISING_EDGE);
}

static bool frame_begins(Camera *camera, const ScanLine *line, bool is_covered)
{
    if (is_triggered(camera, FRAME_ACTIVE) && !fires(camera, FRAME_ACTIVE, is_covered))
        return false;
    if (is_triggered(camera, FRAME_START))
        return fires(camera, FRAME_START, is_covered);
    /* Frames of the belt have numbers of their own: untriggered ones keep to them. */
    return is_triggered(camera, FRAME_ACTIVE) || camera->is_in_step ||
           line->number % INTEGER_OF(camera, Height) == 0;
}

static void take_line(Camera *camera, const ScanLine *line)
{
    bool is_covered = scene_is_covered(&camera->scene, whole_row(barrier_row(camera, line->row)));
    Frame *frame = &camera->frame;
    if (camera->is_framing && is_triggered(camera, FRAME_ACTIVE) &&
        TRIGGER(camera, TriggerSource, FRAME_ACTIVE) == FROM_LINE0 &&
        !fires(camera, FRAME_ACTIVE, is_covered))
        finish_frame(camera, line->done_ns);
    else if (!camera->is_framing && frame_begins(camera, line, is_covered))
        begin_frame(camera, line);
    camera->was_covered = is_covered;
    if (!camera->is_framing)
        return;
    if (frame->buffer && frame->rows < frame->rows_kept)
        expose(camera, line);
    if (++frame->rows == INTEGER_OF(camera, Height))
        finish_frame(camera, line->done_ns);
}

static int64_t clock_at(const Camera *camera, int64_t line)
{
    return camera->clock_ns + llround((double)(line - camera->clock_line) * camera->line_period_ns);
}

/* The shortest time between two triggered scan lines. */
static int64_t busy_ns(const Camera *camera)
{
    return llround(fmax(1e9 / greatest_line_rate(camera), REAL_OF(camera, ExposureTime) * 1e3));
}

/* The pulse of the encoder that comes next; false if none does while the belt moves as it does.
 * `line` is the first pulse above the belt's position. */
static bool next_pulse(Camera *camera, ScanLine *line)
{
    double rows_per_pulse = (double)INTEGER_OF(camera, EncoderDivider) / counts_per_row(camera);
    if (!isfinite(rows_per_pulse) || camera->belt.rows_per_s == 0)
        return false;
    bool is_upward = (camera->belt.rows_per_s > 0) == (rows_per_pulse > 0);
    int64_t mode = INTEGER_OF(camera, EncoderOutputMode);
    if (!is_upward && mode != MOTION) {
        int64_t now_at = (int64_t)floor(belt_row(&camera->belt, now_ns()) / rows_per_pulse);
        camera->line = now_at + 1 < camera->line ? now_at + 1 : camera->line;
        return false;
    }
    int64_t pulse = is_upward ? camera->line : camera->line - 1;
    if (mode == POSITION_UP && pulse <= camera->highest_pulse)
        pulse = camera->highest_pulse + 1;
    line->number = pulse;
    line->next_number = is_upward ? pulse + 1 : pulse;
    line->row = (double)pulse * rows_per_pulse;
    line->seen_ns = belt_time(&camera->belt, line->row);
    line->done_ns = line->seen_ns == NEVER ? NEVER : line->seen_ns + busy_ns(camera);
    return line->seen_ns != NEVER;
}

static bool next_line(Camera *camera, ScanLine *line)
{
    int64_t source = TRIGGER(camera, TriggerSource, LINE_START);
    if (!is_triggered(camera, LINE_START)) {
        line->number = camera->line;
        line->next_number = camera->line + 1;
        line->seen_ns = clock_at(camera, camera->line);
        line->done_ns = clock_at(camera, camera->line + 1);
        line->row = belt_row(&camera->belt, line->seen_ns);
        return true;
    }
    if (source == FROM_ENCODER0)
        return next_pulse(camera, line);
    if (source != FROM_SOFTWARE || camera->software_triggers[LINE_START] == 0)
        return false;
    line->number = camera->line;
    line->next_number = camera->line + 1;
    line->seen_ns = line->done_ns = camera->software_ns;
    line->row = belt_row(&camera->belt, line->seen_ns);
    return true;
}

/* Counts a scan line as past. False if the camera was not ready for it. */
static bool accept_line(Camera *camera, const ScanLine *line)
{
    camera->line = line->next_number;
    if (line->number > camera->highest_pulse)
        camera->highest_pulse = line->number;
    if (!is_triggered(camera, LINE_START))
        return true;
    if (camera->software_triggers[LINE_START] > 0)
        camera->software_triggers[LINE_START]--;
    if (TRIGGER(camera, TriggerSource, LINE_START) == FROM_ENCODER0 &&
        line->seen_ns < camera->ready_ns) {
        INTEGER_OF(camera, SimOvertriggeredLines)++;
        return false;
    }
    camera->ready_ns = line->seen_ns + busy_ns(camera);
    return true;
}

/* Takes all scan lines that are due. */
static void advance(Camera *camera, int64_t now)
{
    ScanLine line;
    for (;;) {
        if (camera->held && now >= camera->held_until_ns) {
            deliver(camera, camera->held, camera->is_held_twice);
            camera->held = NULL;
        }
        if (!camera->is_acquiring || camera->is_gone || camera->held || !next_line(camera, &line) ||
            line.done_ns > now)
            return;
        if (accept_line(camera, &line))
            take_line(camera, &line);
    }
}

static int64_t next_wake(Camera *camera, int64_t now)
{
    ScanLine line;
    if (camera->held)
        return camera->held_until_ns;
    if (!camera->is_acquiring || camera->is_gone || !next_line(camera, &line))
        return NEVER;
    int64_t until = now + SLICE_NS;
    if (!is_triggered(camera, LINE_START) && camera->is_framing) {
        int64_t end =
            clock_at(camera, camera->line + INTEGER_OF(camera, Height) - camera->frame.rows);
        until = end < until ? end : until;
    }
    return line.done_ns > until ? line.done_ns : until;
}

static void *run(void *argument)
{
    Camera *camera = argument;
    pthread_setname_np(pthread_self(), "vqi-camera");
    pthread_mutex_lock(&camera->lock);
    while (!camera->is_closing) {
        int64_t now = now_ns();
        advance(camera, now);
        int64_t wake = next_wake(camera, now);
        struct timespec until = {wake / 1000000000, wake % 1000000000};
        if (wake == NEVER)
            pthread_cond_wait(&camera->wake, &camera->lock);
        else
            pthread_cond_timedwait(&camera->wake, &camera->lock, &until);
    }
    pthread_mutex_unlock(&camera->lock);
    return NULL;
}

/* --- commands and changes --- */

static void set_clock(Camera *camera)
{
    double rate = fmin(REAL_OF(camera, AcquisitionLineRate), greatest_line_rate(camera));
    if (rate == REAL_OF(camera, AcquisitionLineRate) && camera->line_period_ns == 1e9 / rate)
        return;
    camera->clock_ns = clock_at(camera, camera->line);
    camera->clock_line = camera->line;
    camera->line_period_ns = 1e9 / rate;
    REAL_OF(camera, AcquisitionLineRate) = rate;
}

static void number_lines(Camera *camera, int64_t now)
{
    int64_t epoch = INTEGER_OF(camera, SimBeltEpoch), height = INTEGER_OF(camera, Height);
    camera->clock_ns = epoch > 0 ? epoch : now;
    camera->clock_line = camera->line = 0;
    camera->line_period_ns = 1e9 / REAL_OF(camera, AcquisitionLineRate);
    double row = belt_row(&camera->belt, now);
    if (!is_triggered(camera, LINE_START)) {
        double past =
            ceil((double)(now - camera->clock_ns) / camera->line_period_ns / (double)height);
        camera->line = past > 0 ? (int64_t)past * height : 0;
    } else if (TRIGGER(camera, TriggerSource, LINE_START) == FROM_ENCODER0) {
        double pulses = row * counts_per_row(camera) / (double)INTEGER_OF(camera, EncoderDivider);
        camera->line = (int64_t)ceil(pulses - ROW_TOLERANCE);
    }
    camera->highest_pulse = camera->line - 1;
}

static void start(Camera *camera, int64_t now)
{
    if (camera->is_acquiring)
        return;
    int64_t mode = INTEGER_OF(camera, AcquisitionMode);
    set_belt(camera, now);
    if (INTEGER_OF(camera, SimBeltEpoch) == 0)
        camera->belt.row = camera->encoder_zero = camera->counter_zero = 0;
    number_lines(camera, now);
    camera->was_covered = scene_is_covered(
        &camera->scene, whole_row(barrier_row(camera, belt_row(&camera->belt, now) - 1)));
    camera->last_number = INT64_MIN;
    camera->next_id = 0;
    camera->ready_ns = 0;
    camera->is_framing = camera->is_in_step = false;
    INTEGER_OF(camera, SimOvertriggeredLines) = 0;
    memset(camera->software_triggers, 0, sizeof camera->software_triggers);
    camera->frames_left = mode == SINGLE_FRAME  ? 1
                          : mode == MULTI_FRAME ? INTEGER_OF(camera, AcquisitionFrameCount)
                                                : 0;
    camera->is_acquiring = true;
}

static void stop(Camera *camera)
{
    drop_frame(camera);
    if (camera->held)
        stream_give_back(&camera->stream, camera->held);
    camera->held = NULL;
    camera->is_acquiring = false;
}

void camera_release_buffer(Camera *camera)
{
    pthread_mutex_lock(&camera->lock);
    if (camera->frame.buffer)
        stream_give_back(&camera->stream, camera->frame.buffer);
    camera->frame.buffer = NULL;
    if (camera->held)
        stream_give_back(&camera->stream, camera->held);
    camera->held = NULL;
    pthread_mutex_unlock(&camera->lock);
}

static void command(Camera *camera, FeatureId id, int64_t now)
{
    double row = belt_row(&camera->belt, now);
    if (id == F_AcquisitionStart)
        start(camera, now);
    else if (id == F_AcquisitionStop)
        stop(camera);
    else if (id == F_TriggerSoftware) {
        camera->software_triggers[selected(camera, id)]++;
        camera->software_ns = now;
    } else if (id == F_TimestampLatch)
        INTEGER_OF(camera, TimestampLatchValue) = now;
    else if (id == F_EncoderReset)
        camera->encoder_zero = counts_at(camera, row);
    else if (id == F_CounterReset)
        camera->counter_zero = plates_before(camera, row);
}

static bool use_source(Camera *camera, char *why, size_t why_bytes)
{
    Scene scene;
    if (!scene_open(&scene, camera->texts[F_SimSource], why, why_bytes))
        return false;
    bool is_whole = INTEGER_OF(camera, Width) == INTEGER_OF(camera, SensorWidth);
    scene_close(&camera->scene);
    camera->scene = scene;
    INTEGER_OF(camera, SensorWidth) = scene.width;
    REAL_OF(camera, SimPixelPitch) = scene.pixel_pitch_mm;
    REAL_OF(camera, SimNominalExposure) = scene.nominal_exposure_us;
    if (is_whole || INTEGER_OF(camera, Width) + INTEGER_OF(camera, OffsetX) > scene.width) {
        INTEGER_OF(camera, Width) = scene.width;
        INTEGER_OF(camera, OffsetX) = 0;
    }
    return true;
}

/* What follows from a feature's new value. */
static void follow(Camera *camera, FeatureId id, int64_t now)
{
    if (id == F_ExposureTime)
        REAL_OF(camera, ExposureTime) = round(REAL_OF(camera, ExposureTime) * 10) / 10;
    if (id == F_Gain)
        REAL_OF(camera, Gain) = round(REAL_OF(camera, Gain) * 10) / 10;
    set_clock(camera);
    bool moves_belt = id == F_SimBeltSpeed || id == F_SimBeltJitter || id == F_SimBeltDirection ||
                      id == F_SimBeltEpoch || id == F_SimBeltStops || id == F_SimSource;
    if (moves_belt)
        set_belt(camera, now);
    camera->is_sensor_set = false;
}

static bool is_frame_list(const char *text) { return text[strspn(text, "0123456789, ")] == 0; }

/* "1500+300, 4000+120": when the belt stands still, and for how long. False if it is no such list,
 * or they do not follow one another. */
static bool read_stops(Belt *belt, const char *text)
{
    static const char DIGITS[] = "0123456789";
    static const int64_t LATEST_MS = 100000000000; /* far from where ns would overflow */
    BeltStop stops[MOST_STOPS] = {0};
    int count = 0;
    for (int64_t free_ms = 0; *text;) {
        char *end;
        int64_t from_ms = strtoll(text, &end, 10);
        if (count == MOST_STOPS || !strspn(text, DIGITS) || *end != '+' || !strspn(end + 1, DIGITS))
            return false;
        int64_t for_ms = strtoll(end + 1, &end, 10);
        if (from_ms < free_ms || from_ms > LATEST_MS || for_ms > LATEST_MS)
            return false;
        stops[count++] = (BeltStop){from_ms * 1000000, for_ms * 1000000};
        free_ms = from_ms + for_ms;
        text = end + strspn(end, ", ");
    }
    memcpy(belt->stops, stops, sizeof stops);
    belt->stop_count = count;
    return true;
}

/* Whether a text means something to its feature, which then goes by it. */
static bool take_text(Camera *camera, FeatureId id, char *why, size_t why_bytes)
{
    const char *text = camera->texts[id], *name = features[id].name;
    if (id == F_SimSource) {
        int length = snprintf(why, why_bytes, "%s: ", name);
        return use_source(camera, why + length, why_bytes - (size_t)length);
    }
    bool is_stops = id == F_SimBeltStops;
    const char *wanted = is_stops ? "stops, one after another, are wanted, like 1500+300, 4000+120"
                                  : "a list of frame numbers is wanted, like 3, 17";
    snprintf(why, why_bytes, "%s: %s", name, wanted);
    return is_stops ? read_stops(&camera->belt, text) : is_frame_list(text);
}

static void refresh(Camera *camera, FeatureId id)
{
    int64_t now = now_ns();
    double row = belt_row(&camera->belt, now);
    if (id == F_Timestamp)
        INTEGER_OF(camera, Timestamp) = now;
    else if (id == F_DeviceTemperature)
        REAL_OF(camera, DeviceTemperature) = temperature(camera, now);
    else if (id == F_EncoderValue)
        INTEGER_OF(camera, EncoderValue) = counts_at(camera, row) - camera->encoder_zero;
    else if (id == F_CounterValue)
        INTEGER_OF(camera, CounterValue) = plates_before(camera, row) - camera->counter_zero;
    else if (id == F_LineStatusAll)
        INTEGER_OF(camera, LineStatusAll) = lines_at(camera, row);
    else if (id == F_LineStatus)
        camera->values[id][selected(camera, id)].integer =
            lines_at(camera, row) >> selected(camera, id) & 1;
    else if (id == F_PayloadSize)
        INTEGER_OF(camera, PayloadSize) = (int64_t)camera_payload_bytes(camera);
}

/* --- registers --- */

static GC_ERROR read_register(Camera *camera, FeatureId id, Register which, void *bytes,
                              size_t *count)
{
    const Feature *feature = &features[id];
    size_t size = feature->kind == TEXT ? TEXT_BYTES : sizeof(Value);
    if (*count > size)
        return fail(GC_ERR_INVALID_ADDRESS, "%s has %zu bytes, not %zu", feature->name, size,
                    *count);
    if (feature->kind == TEXT) {
        memcpy(bytes, camera->texts[id], *count);
        return GC_ERR_SUCCESS;
    }
    refresh(camera, id);
    Value value =
        which == REGISTER_MAXIMUM ? greatest(camera, id) : camera->values[id][selected(camera, id)];
    if (feature->kind == COMMAND)
        value.integer = 0;
    memcpy(bytes, &value, *count);
    return GC_ERR_SUCCESS;
}

static GC_ERROR check_number(const Camera *camera, FeatureId id, Value value)
{
    const Feature *feature = &features[id];
    bool is_real = feature->kind == FLOAT;
    double number = is_real ? value.real : (double)value.integer, most = feature->maximum;
    if (feature->kind == ENUMERATION && !feature_has_choice(feature, value.integer))
        return fail(GC_ERR_INVALID_VALUE, "%s has no choice %lld", feature->name,
                    (long long)value.integer);
    if (feature->kind == BOOLEAN && value.integer >> 1)
        return fail(GC_ERR_INVALID_VALUE, "%s is 0 or 1", feature->name);
    if (feature->kind != INTEGER && !is_real)
        return GC_ERR_SUCCESS;
    if (most == BY_CAMERA)
        most = is_real ? greatest(camera, id).real : (double)greatest(camera, id).integer;
    if (!(number >= feature->minimum && number <= most))
        return fail(GC_ERR_INVALID_VALUE, "%s = %.10g is not within %.10g and %.10g %s",
                    feature->name, number, feature->minimum, most, feature->unit);
    return GC_ERR_SUCCESS;
}

static GC_ERROR write_text(Camera *camera, FeatureId id, const void *bytes, size_t count)
{
    char *text = camera->texts[id], before[TEXT_BYTES], why[512];
    if (count > TEXT_BYTES)
        return fail(GC_ERR_INVALID_VALUE, "%s holds %d bytes", features[id].name, TEXT_BYTES);
    memcpy(before, text, TEXT_BYTES);
    memset(text, 0, TEXT_BYTES);
    memcpy(text, bytes, count < TEXT_BYTES ? count : TEXT_BYTES - 1);
    if (take_text(camera, id, why, sizeof why))
        return GC_ERR_SUCCESS;
    memcpy(text, before, TEXT_BYTES);
    return fail(GC_ERR_INVALID_VALUE, "%s", why);
}

static GC_ERROR write_register(Camera *camera, FeatureId id, const void *bytes, size_t count)
{
    const Feature *feature = &features[id];
    Value value = {0};
    bool is_locked = camera->is_acquiring || INTEGER_OF(camera, TLParamsLocked);
    if (feature->access == RO)
        return fail(GC_ERR_ACCESS_DENIED, "%s is read only", feature->name);
    if (feature->access == LOCKED && is_locked)
        return fail(GC_ERR_ACCESS_DENIED, "%s is locked while the stream runs", feature->name);
    if (feature->kind == TEXT)
        return write_text(camera, id, bytes, count);
    if (count != sizeof value)
        return fail(GC_ERR_INVALID_ADDRESS, "%s has 8 bytes, not %zu", feature->name, count);
    memcpy(&value, bytes, sizeof value);
    GC_ERROR result = check_number(camera, id, value);
    if (result == GC_ERR_SUCCESS && feature->kind != COMMAND)
        camera->values[id][selected(camera, id)] = value;
    return result;
}

GC_ERROR camera_read(Camera *camera, uint64_t address, void *bytes, size_t *count)
{
    Register which;
    size_t length;
    const char *text = description(&length);
    if (address >= DESCRIPTION_ADDRESS && address < DESCRIPTION_ADDRESS + length) {
        size_t left = length - (size_t)(address - DESCRIPTION_ADDRESS);
        *count = *count < left ? *count : left;
        memcpy(bytes, text + (address - DESCRIPTION_ADDRESS), *count);
        return GC_ERR_SUCCESS;
    }
    FeatureId id = feature_at(address, &which);
    if (id == F_None)
        return fail(GC_ERR_INVALID_ADDRESS, "no register at 0x%llx", (unsigned long long)address);
    pthread_mutex_lock(&camera->lock);
    GC_ERROR result = camera->is_gone ? fail(GC_ERR_IO, "%s is disconnected", camera->serial)
                                      : read_register(camera, id, which, bytes, count);
    pthread_mutex_unlock(&camera->lock);
    return result;
}

GC_ERROR camera_write(Camera *camera, uint64_t address, const void *bytes, size_t count)
{
    Register which;
    FeatureId id = feature_at(address, &which);
    if (id == F_None || which == REGISTER_MAXIMUM)
        return fail(GC_ERR_INVALID_ADDRESS, "no register to write at 0x%llx",
                    (unsigned long long)address);
    pthread_mutex_lock(&camera->lock);
    int64_t now = now_ns();
    /* What is past was seen with the values of then. */
    advance(camera, now);
    GC_ERROR result = camera->is_gone ? fail(GC_ERR_IO, "%s is disconnected", camera->serial)
                                      : write_register(camera, id, bytes, count);
    if (result == GC_ERR_SUCCESS && features[id].kind == COMMAND)
        command(camera, id, now);
    else if (result == GC_ERR_SUCCESS)
        follow(camera, id, now);
    pthread_cond_signal(&camera->wake);
    pthread_mutex_unlock(&camera->lock);
    return result;
}

/* --- life --- */

static void set_initial_values(Camera *camera)
{
    for (FeatureId id = 0; id < FEATURE_COUNT; id++) {
        const Feature *feature = &features[id];
        for (int i = 0; i < MOST_SELECTED; i++)
            if (feature->kind == FLOAT)
                camera->values[id][i].real = feature->initial;
            else
                camera->values[id][i].integer = (int64_t)feature->initial;
        if (feature->kind == TEXT)
            snprintf(camera->texts[id], TEXT_BYTES, "%s", feature->choices);
    }
    snprintf(camera->texts[F_DeviceSerialNumber], TEXT_BYTES, "%s", camera->serial);
}

static void init_locks(Camera *camera)
{
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&camera->lock, NULL);
    pthread_cond_init(&camera->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    stream_init(&camera->stream);
}

static void discard(Camera *camera)
{
    stream_destroy(&camera->stream);
    scene_close(&camera->scene);
    sensor_free(&camera->sensor);
    pthread_cond_destroy(&camera->wake);
    pthread_mutex_destroy(&camera->lock);
    free(camera);
}

Camera *camera_open(const char *serial, const char *other_serial_path)
{
    char why[512];
    Camera *camera = calloc(1, sizeof *camera);
    if (!camera)
        return NULL;
    snprintf(camera->serial, sizeof camera->serial, "%s", serial);
    snprintf(camera->other_serial_path, sizeof camera->other_serial_path, "%s", other_serial_path);
    camera->opened_ns = now_ns();
    set_initial_values(camera);
    init_locks(camera);
    if (!scene_open(&camera->scene, "", why, sizeof why)) {
        discard(camera);
        return NULL;
    }
    camera->line_period_ns = 1e9 / REAL_OF(camera, AcquisitionLineRate);
    camera->belt.since_ns = camera->opened_ns;
    set_belt(camera, camera->opened_ns);
    if (pthread_create(&camera->thread, NULL, run, camera)) {
        discard(camera);
        return NULL;
    }
    return camera;
}

void camera_close(Camera *camera)
{
    pthread_mutex_lock(&camera->lock);
    camera->is_closing = true;
    pthread_cond_signal(&camera->wake);
    pthread_mutex_unlock(&camera->lock);
    pthread_join(camera->thread, NULL);
    discard(camera);
}
