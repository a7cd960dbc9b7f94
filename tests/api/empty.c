/* A library target needs a source. */
typedef int switchyard_empty;
