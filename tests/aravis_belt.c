/* A GigE Vision camera over a belt, for tests: aravis's fake camera (its GVCP and GVSP on the wire)
 * with recorded scan lines for a picture.
 *
 * aravis_belt STRIP SERIAL LOST_SHARE: STRIP holds scan lines without anything between them, played
 * from its beginning, over and over; LOST_SHARE of the packets are not sent. */
#include <arv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    ArvFakeCamera *camera;
    const char *scan_lines;
    size_t bytes, at;
} Strip;

static void fill(ArvBuffer *buffer, void *data, guint32 exposure_us, guint32 gain,
                 ArvPixelFormat pixel_format)
{
    (void)exposure_us, (void)gain, (void)pixel_format;
    Strip *strip = data;
    size_t size = arv_fake_camera_get_payload(strip->camera); /* the buffer itself says 0 here */
    char *pixels = (char *)arv_buffer_get_data(buffer, NULL);
    for (size_t done = 0; done < size;) {
        size_t count = MIN(size - done, strip->bytes - strip->at);
        memcpy(pixels + done, strip->scan_lines + strip->at, count);
        strip->at = (strip->at + count) % strip->bytes;
        done += count;
    }
}

static int refuse(const char *why)
{
    fprintf(stderr, "aravis_belt: %s\n", why);
    return 1;
}

int main(int count, char **words)
{
    if (count != 4)
        return refuse("usage: aravis_belt STRIP SERIAL LOST_SHARE");
    Strip strip = {0};
    char *bytes = NULL;
    if (!g_file_get_contents(words[1], &bytes, &strip.bytes, NULL) || !strip.bytes)
        return refuse("the strip cannot be read");
    strip.scan_lines = bytes;
    ArvGvFakeCamera *gige =
        g_object_new(ARV_TYPE_GV_FAKE_CAMERA, "interface-name", "127.0.0.1", "serial-number",
                     words[2], "gvsp-lost-ratio", atof(words[3]), NULL);
    if (!arv_gv_fake_camera_is_running(gige))
        return refuse("port 3956 of 127.0.0.1 is taken");
    strip.camera = arv_gv_fake_camera_get_fake_camera(gige);
    arv_fake_camera_set_fill_pattern(strip.camera, fill, &strip);
    g_main_loop_run(g_main_loop_new(NULL, FALSE));
}
