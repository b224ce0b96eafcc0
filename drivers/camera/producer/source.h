/* Layout of a picture source: what passes under the camera, at random access.
 *
 * The belt repeats after `period_rows` scan lines. On it lie pictures, each as wide as a scan line,
 * placed by their first scan line; what no picture covers is belt: `belt_rows` scan lines that
 * repeat without end, counted from the belt's beginning. A picture's first scan line is a plate's
 * leading edge at the light barrier. All numbers are little-endian; offsets count from the start of
 * the file. The file is mapped read-only and must not shrink while a camera uses it.
 */
#ifndef VQI_SOURCE_H
#define VQI_SOURCE_H

#include <stdint.h>

#define SOURCE_MAGIC "VQILINES"
#define SOURCE_VERSION 1

typedef struct {
    char magic[8];
    uint32_t version;
    uint32_t width;             /* pixels of a scan line, one byte each */
    double pixel_pitch_mm;      /* of a pixel on the belt, crossweb and downweb */
    double nominal_exposure_us; /* at which pixels have the source's levels */
    uint64_t period_rows;
    uint64_t belt_offset;
    uint64_t belt_rows;
    uint64_t pictures_offset;   /* of SourcePicture[picture_count] */
    uint64_t placements_offset; /* of SourcePlacement[placement_count], ascending, disjoint */
    uint32_t picture_count;
    uint32_t placement_count;
} SourceHeader;

typedef struct {
    uint64_t offset; /* of its pixels */
    uint64_t rows;
} SourcePicture;

typedef struct {
    uint64_t first_row;
    uint64_t picture;
} SourcePlacement;

#endif
