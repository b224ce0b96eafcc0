#include "scene.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { BELT_LEVEL = 12, BETWEEN_DOTS = 90, ON_DOTS = 170, EVEN_LEVEL = 160, NOISE_VALUES = 65536 };
static const double DOT_PITCH_MM = 1.2, PLATE_MM = 150.0;

static int64_t floor_mod(int64_t number, int64_t by)
{
    int64_t rest = number % by;
    return rest < 0 ? rest + by : rest;
}

static int64_t floor_div(int64_t number, int64_t by)
{
    return (number - floor_mod(number, by)) / by;
}

/* --- sources --- */

/* Whether `count` items of `bytes` lie within the file from `offset` on. */
static bool lies_within(uint64_t offset, uint64_t count, uint64_t bytes, uint64_t file_bytes)
{
    return offset <= file_bytes && (count == 0 || bytes <= (file_bytes - offset) / count);
}

static const char *fault_of_header(const SourceHeader *header, uint64_t bytes)
{
    if (bytes < sizeof *header || memcmp(header->magic, SOURCE_MAGIC, sizeof header->magic))
        return "is no picture source";
    if (header->version != SOURCE_VERSION)
        return "has another version than this producer";
    if (header->width < 16 || header->width > MAX_WIDTH)
        return "has a width beyond the sensor's";
    if (!(header->pixel_pitch_mm >= 1e-4 && header->pixel_pitch_mm <= 100))
        return "has a pixel pitch that is not within 0.0001 and 100 mm";
    if (!(header->nominal_exposure_us >= 0.01 && header->nominal_exposure_us <= 1e6))
        return "has an exposure that is not within 0.01 and 1000000 us";
    if (!header->belt_rows || !header->period_rows || header->period_rows > INT64_MAX / 2)
        return "has no scan lines";
    if (!lies_within(header->belt_offset, header->belt_rows, header->width, bytes) ||
        !lies_within(header->pictures_offset, header->picture_count, sizeof(SourcePicture),
                     bytes) ||
        !lies_within(header->placements_offset, header->placement_count, sizeof(SourcePlacement),
                     bytes) ||
        header->pictures_offset % 8 || header->placements_offset % 8)
        return "is cut short";
    return NULL;
}

static const char *fault_of_tables(const SourceHeader *header, uint64_t bytes)
{
    const uint8_t *file = (const uint8_t *)header;
    const SourcePicture *pictures = (const void *)(file + header->pictures_offset);
    const SourcePlacement *places = (const void *)(file + header->placements_offset);
    for (uint32_t i = 0; i < header->picture_count; i++)
        if (!lies_within(pictures[i].offset, pictures[i].rows, header->width, bytes))
            return "has a picture beyond its end";
    uint64_t free_from = 0;
    for (uint32_t i = 0; i < header->placement_count; i++) {
        if (places[i].picture >= header->picture_count || places[i].first_row < free_from)
            return "has placements that are out of order, overlap or name no picture";
        free_from = places[i].first_row + pictures[places[i].picture].rows;
        if (free_from < places[i].first_row || free_from > header->period_rows)
            return "has a picture beyond its period";
    }
    return NULL;
}

static bool use_file(Scene *scene, const SourceHeader *header)
{
    const uint8_t *file = (const uint8_t *)header;
    const SourcePicture *pictures = (const void *)(file + header->pictures_offset);
    scene->width = header->width;
    scene->period_rows = (int64_t)header->period_rows;
    scene->belt_rows = (int64_t)header->belt_rows;
    scene->belt = file + header->belt_offset;
    scene->pixel_pitch_mm = header->pixel_pitch_mm;
    scene->nominal_exposure_us = header->nominal_exposure_us;
    scene->placements = (const void *)(file + header->placements_offset);
    scene->placement_count = header->placement_count;
    scene->pictures = calloc(header->picture_count + 1u, sizeof(Picture));
    for (uint32_t i = 0; scene->pictures && i < header->picture_count; i++) {
        int64_t rows = (int64_t)pictures[i].rows;
        scene->pictures[i] = (Picture){file + pictures[i].offset, rows, rows ? rows : 1};
    }
    return scene->pictures != NULL;
}

static bool map_file(Scene *scene, const char *path, char *why, size_t why_bytes)
{
    struct stat status;
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || fstat(file, &status) < 0 || status.st_size <= 0) {
        snprintf(why, why_bytes, "%.400s: cannot be read: %m", path);
        if (file >= 0)
            close(file);
        return false;
    }
    size_t bytes = (size_t)status.st_size;
    void *mapping = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
    close(file);
    if (mapping == MAP_FAILED) {
        snprintf(why, why_bytes, "%.400s: cannot be mapped: %m", path);
        return false;
    }
    scene->mapping = mapping;
    scene->mapped_bytes = bytes;
    const char *fault = fault_of_header(mapping, bytes);
    if (!fault)
        fault = fault_of_tables(mapping, bytes);
    if (fault)
        snprintf(why, why_bytes, "%.400s: %s", path, fault);
    return !fault;
}

/* Dots a whole number of pixels apart, on `margin` px of belt left and right. */
static void draw_lattice(uint8_t *rows, int64_t pitch, int64_t width, int64_t margin)
{
    for (int64_t y = 0; y < pitch; y++)
        for (int64_t x = 0; x < width; x++) {
            double turn = 2 * M_PI / (double)pitch;
            double wave = cos(turn * (double)x) + cos(turn * (double)y);
            double share = fmin(1, fmax(0, (wave - 0.6) / 0.8));
            bool is_belt = x < margin || x >= width - margin;
            double level = BETWEEN_DOTS + (ON_DOTS - BETWEEN_DOTS) * share;
            rows[y * width + x] = is_belt ? BELT_LEVEL : (uint8_t)lround(level);
        }
}

static bool use_built_in(Scene *scene)
{
    static const SourcePlacement placement = {(uint64_t)(PLATE_MM / DEFAULT_PITCH_MM), 0};
    int64_t plate_rows = (int64_t)placement.first_row;
    int64_t pitch = lround(DOT_PITCH_MM / DEFAULT_PITCH_MM);
    uint8_t *rows = malloc((size_t)(DEFAULT_WIDTH * (pitch + 1)));
    scene->pictures = calloc(1, sizeof(Picture));
    if (!rows || !scene->pictures) {
        free(rows);
        return false;
    }
    memset(rows, BELT_LEVEL, DEFAULT_WIDTH);
    draw_lattice(rows + DEFAULT_WIDTH, pitch, DEFAULT_WIDTH, DEFAULT_WIDTH / 20);
    scene->width = DEFAULT_WIDTH;
    scene->period_rows = 2 * plate_rows;
    scene->belt = rows;
    scene->belt_rows = 1;
    scene->pixel_pitch_mm = DEFAULT_PITCH_MM;
    scene->nominal_exposure_us = DEFAULT_EXPOSURE_US;
    scene->pictures[0] = (Picture){rows + DEFAULT_WIDTH, plate_rows, pitch};
    scene->placements = &placement;
    scene->placement_count = 1;
    return true;
}

static bool make_targets(Scene *scene)
{
    int64_t pitch = lround(fmin(1200, fmax(4, DOT_PITCH_MM / scene->pixel_pitch_mm)));
    size_t width = (size_t)scene->width;
    scene->lattice_rows = pitch;
    scene->lattice = malloc((size_t)pitch * width);
    scene->even = malloc(width);
    scene->dark = calloc(1, width);
    if (!scene->lattice || !scene->even || !scene->dark)
        return false;
    memset(scene->even, EVEN_LEVEL, width);
    draw_lattice(scene->lattice, pitch, scene->width, 0);
    return true;
}

bool scene_open(Scene *scene, const char *path, char *why, size_t why_bytes)
{
    memset(scene, 0, sizeof *scene);
    if (*path && !map_file(scene, path, why, why_bytes)) {
        scene_close(scene);
        return false;
    }
    bool is_made = *path ? use_file(scene, scene->mapping) : use_built_in(scene);
    if (is_made && make_targets(scene))
        return true;
    snprintf(why, why_bytes, "out of memory");
    scene_close(scene);
    return false;
}

void scene_close(Scene *scene)
{
    if (scene->mapping)
        munmap(scene->mapping, scene->mapped_bytes);
    else
        free((void *)(uintptr_t)scene->belt);
    free(scene->pictures);
    free(scene->lattice);
    free(scene->even);
    free(scene->dark);
    memset(scene, 0, sizeof *scene);
}

/* --- the belt --- */

/* How many placements begin at or before a scan line of the period. */
static int64_t placements_until(const Scene *scene, int64_t place)
{
    int64_t low = 0, high = scene->placement_count;
    while (low < high) {
        int64_t middle = (low + high) / 2;
        if ((int64_t)scene->placements[middle].first_row <= place)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static const Picture *picture_at(const Scene *scene, int64_t row, int64_t *within)
{
    int64_t place = floor_mod(row, scene->period_rows), index = placements_until(scene, place) - 1;
    if (index < 0)
        return NULL;
    const SourcePlacement *placement = &scene->placements[index];
    const Picture *picture = &scene->pictures[placement->picture];
    *within = place - (int64_t)placement->first_row;
    return *within < picture->rows ? picture : NULL;
}

const uint8_t *scene_row(const Scene *scene, Target target, int64_t row)
{
    int64_t within;
    if (target == TARGET_UNIFORM)
        return scene->even;
    if (target == TARGET_DARK)
        return scene->dark;
    if (target == TARGET_LATTICE)
        return scene->lattice + floor_mod(row, scene->lattice_rows) * scene->width;
    const Picture *picture = picture_at(scene, row, &within);
    if (picture)
        return picture->pixels + within % picture->cycle * scene->width;
    return scene->belt + floor_mod(row, scene->belt_rows) * scene->width;
}

bool scene_is_covered(const Scene *scene, int64_t row)
{
    int64_t within;
    return picture_at(scene, row, &within) != NULL;
}

int64_t scene_edges_before(const Scene *scene, int64_t row)
{
    int64_t laps = floor_div(row, scene->period_rows), place = floor_mod(row, scene->period_rows);
    return laps * scene->placement_count + placements_until(scene, place - 1);
}

/* --- the sensor --- */

static uint32_t hash(uint32_t number)
{
    number = (number ^ (number >> 16)) * 0x7feb352du;
    number = (number ^ (number >> 15)) * 0x846ca68bu;
    return number ^ (number >> 16);
}

/* Even in -1 to 1, the same for the same number. */
static double spread(uint32_t number) { return hash(number) / 2147483648.0 - 1; }

static double coefficient(const Optics *optics, int64_t x, int64_t width)
{
    double across = width > 1 ? 2.0 * (double)x / (double)(width - 1) - 1 : 0;
    double value = optics->factor * (1 - optics->vignetting * across * across);
    value *= 1 + optics->non_uniformity * spread((uint32_t)x);
    double from_dirt = fabs((double)(x - optics->dirt_position)) * 2;
    if (optics->dirt_width > 0 && from_dirt <= (double)optics->dirt_width)
        value *= 1 - optics->dirt_contrast *
                         cos(M_PI / 2 * from_dirt / (double)(optics->dirt_width + 1));
    return x == optics->dead_pixel ? 0 : value;
}

static void make_noise(int16_t *noise, size_t count, double sigma)
{
    for (uint32_t i = 0; i < count; i++) {
        /* Six even numbers in -1 to 1 sum to a variance of 2. */
        double sum = 0;
        for (uint32_t k = 0; k < 6; k++)
            sum += spread(i * 6 + k + 1000000);
        noise[i] = (int16_t)lround(sum / M_SQRT2 * sigma * 16);
    }
}

bool sensor_set(Sensor *sensor, const Optics *optics, int64_t width)
{
    bool is_same_size = sensor->width == width;
    size_t pixels = (size_t)width, noise_count = NOISE_VALUES + pixels;
    if (!is_same_size) {
        sensor_free(sensor);
        sensor->coefficients = malloc(pixels * sizeof(uint16_t));
        sensor->noise = malloc(noise_count * sizeof(int16_t));
        sensor->blurred = malloc(pixels * (2 * sizeof(uint32_t) + 1));
        if (!sensor->coefficients || !sensor->noise || !sensor->blurred)
            return false;
        sensor->width = width;
    }
    if (!is_same_size || sensor->optics.noise != optics->noise)
        make_noise(sensor->noise, noise_count, optics->noise);
    for (int64_t x = 0; x < width; x++)
        sensor->coefficients[x] =
            (uint16_t)fmin(65535, lround(coefficient(optics, x, width) * 4096));
    sensor->optics = *optics;
    sensor->is_neutral = optics->factor == 1 && optics->vignetting == 0 &&
                         optics->non_uniformity == 0 && optics->dark_level == 0 &&
                         optics->noise == 0 && optics->dirt_width == 0 && optics->dead_pixel < 0;
    return true;
}

void sensor_free(Sensor *sensor)
{
    free(sensor->coefficients);
    free(sensor->noise);
    free(sensor->blurred);
    memset(sensor, 0, sizeof *sensor);
}

static void add_row(uint32_t *restrict sums, const uint8_t *restrict row, uint32_t weight,
                    int64_t count)
{
    for (int64_t x = 0; x < count; x++)
        sums[x] += row[x] * weight;
}

/* Each column's mean over the rows within `radius`, on the 12 bit scale; a rim counts by its share,
 * in 1/16. */
static void blur_downweb(const Scene *scene, Target target, int64_t row, int64_t radius,
                         uint32_t rim, uint32_t *means)
{
    uint32_t weight = (uint32_t)(2 * radius + 1) * 16 + 2 * rim;
    memset(means, 0, (size_t)scene->width * sizeof *means);
    for (int64_t i = -radius; i <= radius; i++)
        add_row(means, scene_row(scene, target, row + i), 16, scene->width);
    if (rim) {
        add_row(means, scene_row(scene, target, row - radius - 1), rim, scene->width);
        add_row(means, scene_row(scene, target, row + radius + 1), rim, scene->width);
    }
    for (int64_t x = 0; x < scene->width; x++)
        means[x] = (means[x] * 16 + weight / 2) / weight;
}

/* The same along the scan line, which ends at both sides, to 8 bit. `sums` is scratch. */
static void blur_crossweb(const uint32_t *means, int64_t width, int64_t radius, uint32_t rim,
                          uint32_t *sums, uint8_t *out)
{
    uint32_t total = 0;
    for (int64_t x = 0; x < width; x++)
        sums[x] = total += means[x];
    for (int64_t x = 0; x < width; x++) {
        int64_t first = x > radius ? x - radius : 0;
        int64_t last = x + radius < width ? x + radius : width - 1;
        uint32_t left = first > 0 ? rim : 0, right = last < width - 1 ? rim : 0;
        uint32_t weight = (uint32_t)(last - first + 1) * 16 + left + right;
        uint32_t sum = (sums[last] - (first ? sums[first - 1] : 0)) * 16;
        sum += left ? means[first - 1] * left : 0;
        sum += right ? means[last + 1] * right : 0;
        out[x] = (uint8_t)((sum + weight * 8) / (weight * 16));
    }
}

static const uint8_t *blur(Sensor *sensor, const Scene *scene, Target target, int64_t row)
{
    int64_t width = sensor->width, radius = (int64_t)sensor->optics.defocus;
    uint32_t rim = (uint32_t)lround((sensor->optics.defocus - (double)radius) * 16);
    uint32_t *means = sensor->blurred, *sums = means + width;
    uint8_t *out = (uint8_t *)(sums + width);
    blur_downweb(scene, target, row, radius, rim, means);
    blur_crossweb(means, width, radius, rim, sums, out);
    return out;
}

/* The level of each pixel on the 12 bit scale, to 8 or 12 bit. */
static void expose_mono8(const uint8_t *restrict in, const uint16_t *restrict by,
                         const int16_t *restrict noise, int32_t dark, int64_t count,
                         uint8_t *restrict out)
{
    for (int64_t x = 0; x < count; x++) {
        int32_t level = (int32_t)(((uint32_t)in[x] * by[x]) >> 8) + dark + noise[x];
        level = level < 0 ? 0 : level;
        out[x] = (uint8_t)(level > 4087 ? 255 : (level + 8) >> 4);
    }
}

static void expose_mono12(const uint8_t *restrict in, const uint16_t *restrict by,
                          const int16_t *restrict noise, int32_t dark, int64_t count,
                          uint16_t *restrict out)
{
    for (int64_t x = 0; x < count; x++) {
        int32_t level = (int32_t)(((uint32_t)in[x] * by[x]) >> 8) + dark + noise[x];
        level = level < 0 ? 0 : level;
        out[x] = (uint16_t)(level > 4095 ? 4095 : level);
    }
}

void sensor_expose(Sensor *sensor, const Scene *scene, Target target, int64_t row, int64_t moment,
                   int64_t offset, int64_t count, bool is_mono12, uint8_t *out)
{
    const uint8_t *in = sensor->optics.defocus > 0 ? blur(sensor, scene, target, row)
                                                   : scene_row(scene, target, row);
    if (sensor->is_neutral && !is_mono12) {
        memcpy(out, in + offset, (size_t)count);
        return;
    }
    int32_t dark = (int32_t)lround(sensor->optics.dark_level * 16);
    const int16_t *noise = sensor->noise + hash((uint32_t)moment) % NOISE_VALUES;
    const uint16_t *by = sensor->coefficients + offset;
    if (is_mono12)
        expose_mono12(in + offset, by, noise, dark, count, (uint16_t *)(void *)out);
    else
        expose_mono8(in + offset, by, noise, dark, count, out);
}
