/* The feature table, and what is made of it: the register map and the description file. */
#ifndef VQI_FEATURES_H
#define VQI_FEATURES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifndef VENDOR
#define VENDOR "VQI"
#endif
#define PRODUCER_VERSION "1.0.0"
#define TEXT_BYTES 1024
#define MOST_SELECTED 5 /* choices of the largest selector */
#define MAX_WIDTH 32768
#define DEFAULT_WIDTH 4096
#define DEFAULT_PITCH_MM 0.1
#define DEFAULT_EXPOSURE_US 10
#define LINK_BYTES_PER_S 1.2e9
#define PIXELFORMAT_MONO8 0x01080001
#define BY_CAMERA (-1)
#define DESCRIPTION_ADDRESS 0x1000000u

typedef enum { INTEGER, FLOAT, BOOLEAN, ENUMERATION, COMMAND, TEXT, CHUNK } Kind;
typedef enum { RO, RW, LOCKED } Access;
typedef enum { BEGINNER, EXPERT, INVISIBLE } Visibility;

typedef enum {
    F_None = -1,
#define FEATURE(name, ...) F_##name,
#include "features.def"
#undef FEATURE
    FEATURE_COUNT
} FeatureId;

typedef struct {
    const char *name;
    Kind kind;
    const char *category;
    Access access;
    Visibility visibility;
    const char *unit;
    double minimum, maximum, increment, initial;
    const char *choices;
    FeatureId selector;
    const char *tooltip;
} Feature;

typedef union {
    int64_t integer; /* of all kinds but FLOAT and TEXT */
    double real;
} Value;

extern const Feature features[FEATURE_COUNT];

/* What a register holds. */
typedef enum { REGISTER_VALUE, REGISTER_MAXIMUM } Register;

/* The feature whose register lies at an address, or F_None. */
FeatureId feature_at(uint64_t address, Register *which);

bool feature_has_choice(const Feature *feature, int64_t value);
/* The name of an enumeration's value into `name`; how many choices there are. */
int feature_choice(const Feature *feature, int index, char name[64], int64_t *value);

/* The description file, made once; its length without the final zero. */
const char *description(size_t *length);
/* One for a module that has nothing but an id, for the caller to free. */
char *describe_module(const char *feature, const char *id, const char *port, size_t *length);

#endif
