#ifndef SWITCHYARD_EXPORT_H
#define SWITCHYARD_EXPORT_H
/* Marks what libswitchyard.so shows; the library itself is compiled with hidden visibility. C and
   C++. */

#if defined(__GNUC__)
#define SWITCHYARD_EXPORT __attribute__((visibility("default")))
#else
#define SWITCHYARD_EXPORT
#endif

#endif
