/* The kernels as Python sees them: ``edge_embed.kernels._native``, the twin of ``edge_embed.kernels.pure``.
 *
 * - Everything that comes in is checked here, so that the core can trust it: dtypes, shapes, ids, counts.
 * - What decides where memory is read or written (ids, counts, runs) is copied before it is checked: another thread may
 *   change the caller's array, or its shape, while the interpreter is let go.
 * - Arrays that an object is made of are kept as long as it lives; what is returned is memory of its own.
 * - The interpreter is let go while a batch is worked on, and only then: threads that let it go for some microseconds
 *   pass it among themselves, and a thread of plain Python beside them, say one that installs, waits for minutes.
 * - Whatever is no plain case (an unknown key, say) is answered by None, and the caller goes the general way.
 *
 * The limited API of CPython 3.11 and numpy's of 1.22: one file serves all newer ones.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_22_API_VERSION
#define NPY_TARGET_VERSION NPY_1_22_API_VERSION
#include <numpy/arrayobject.h>

#include <stdlib.h>
#include <string.h>

#include "core.h"

/* Numbers that are worked on without the interpreter, and how many of them the search for a key is worth. */
#define BATCH_NUMBERS 16384
#define NUMBERS_A_KEY 16

/* Keys or ids whose rows are noted on the stack. */
#define FEW 64

/* Keys that are on their way at a time, and what memory gives at once. */
#define UNDER_WAY 32
#define LINE 64

static const ee_kernels *kernels;
static PyTypeObject *index_type, *rows_type;

typedef struct {
    PyObject_HEAD
    ee_index index;
    size_t row_count;
    PyObject *pilots, *slots;
} Index;

typedef struct {
    PyObject_HEAD
    ee_rows rows;
    PyObject *tensors;
} Rows;

/* Let the interpreter go where there is work enough; null where there is not. */
static PyThreadState *leave(size_t numbers) { return numbers >= BATCH_NUMBERS ? PyEval_SaveThread() : NULL; }

static void come_back(PyThreadState *left) {
    if (left)
        PyEval_RestoreThread(left);
}

/* What Python says better: errors with their story, and keys that are no plain text. */
static PyObject *ask(const char *function, PyObject *arguments) {
    PyObject *module, *callable, *answer = NULL;
    if (!arguments)
        return NULL;
    module = PyImport_ImportModule("edge_embed.keys");
    callable = module ? PyObject_GetAttrString(module, function) : NULL;
    if (callable)
        answer = PyObject_CallObject(callable, arguments);
    Py_XDECREF(callable);
    Py_XDECREF(module);
    Py_DECREF(arguments);
    return answer;
}

/* Arrays from outside */

static PyArrayObject *array_of(PyObject *object, const char *name, int type, int dimensions) {
    PyArrayObject *array = (PyArrayObject *)object;
    if (!PyArray_Check(object) || PyArray_TYPE(array) != type || PyArray_NDIM(array) != dimensions ||
        !PyArray_IS_C_CONTIGUOUS(array) || !PyArray_ISNOTSWAPPED(array)) {
        PyErr_Format(PyExc_ValueError, "%s: expected a contiguous array of its own dtype and %d axes, found %R", name,
                     dimensions, (PyObject *)Py_TYPE(object));
        return NULL;
    }
    return array;
}

/* Return a new reference to an array in C's order, aligned and native; ``flags`` say whether it is always a copy. */
static PyArrayObject *laid_out(PyObject *object, const char *name, int is_taken, int type, int dimensions, int flags) {
    PyArrayObject *array = (PyArrayObject *)object;
    if (!is_taken || PyArray_NDIM(array) != dimensions) {
        PyErr_Format(PyExc_ValueError, "%s: expected an array of its own dtype and %d axes, found %R", name, dimensions,
                     (PyObject *)Py_TYPE(object));
        return NULL;
    }
    if ((flags & NPY_ARRAY_ENSURECOPY) && PyArray_TYPE(array) == type && PyArray_ISCARRAY_RO(array)) {
        /* The usual case, in a third of the time that numpy needs to find out that it is one. */
        PyObject *copy = PyArray_SimpleNew(dimensions, PyArray_DIMS(array), type);
        if (copy)
            memcpy(PyArray_DATA((PyArrayObject *)copy), PyArray_DATA(array), (size_t)PyArray_NBYTES(array));
        return (PyArrayObject *)copy;
    }
    return (PyArrayObject *)PyArray_FromArray(array, PyArray_DescrFromType(type),
                                              NPY_ARRAY_CARRAY_RO | NPY_ARRAY_ENSUREARRAY | flags);
}

/* Return our own copy of whole numbers of any width. Those of uint64 that int64 does not hold become negative, which is
 * refused wherever it would not be in its place. */
static PyArrayObject *whole_numbers(PyObject *object, const char *name, int dimensions) {
    return laid_out(object, name, PyArray_Check(object) && PyArray_ISINTEGER((PyArrayObject *)object), NPY_INT64,
                    dimensions, NPY_ARRAY_ENSURECOPY | NPY_ARRAY_FORCECAST);
}

/* Return our own copy of numbers that the type holds. */
static PyArrayObject *copy_of(PyObject *object, const char *name, int type, int dimensions) {
    return laid_out(object, name,
                    PyArray_Check(object) && PyArray_CanCastSafely(PyArray_TYPE((PyArrayObject *)object), type), type,
                    dimensions, NPY_ARRAY_ENSURECOPY);
}

/* Return vectors, the caller's own where they are laid out as they must be: their numbers may change meanwhile. So may
 * their shape, which is read before the interpreter is let go, and never after. */
static PyArrayObject *vectors_of(PyObject *object, const char *name, int dimensions) {
    return laid_out(object, name, PyArray_Check(object) && PyArray_TYPE((PyArrayObject *)object) == NPY_FLOAT32,
                    NPY_FLOAT32, dimensions, 0);
}

static void drop(PyArrayObject *array) { Py_XDECREF((PyObject *)array); }

static const int64_t *numbers(PyArrayObject *array) { return (const int64_t *)PyArray_DATA(array); }

static int rows_there(const ee_rows *rows, const int64_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++)
        if ((uint64_t)ids[i] >= rows->row_count) {
            PyErr_Format(PyExc_IndexError, "expected row ids from 0 to %lld, found %lld",
                         (long long)rows->row_count - 1, (long long)ids[i]);
            return 0;
        }
    return 1;
}

static PyObject *new_vectors(npy_intp n, npy_intp d) {
    npy_intp shape[2] = {n, d};
    return PyArray_SimpleNew(2, shape, NPY_FLOAT32);
}

static float *floats(PyObject *array) { return (float *)PyArray_DATA((PyArrayObject *)array); }

/* Keys */

/* A type's flags are asked for by a call, which is spared where it is the plain one. */
static inline int is_text(PyObject *key) { return Py_TYPE(key) == &PyUnicode_Type || PyUnicode_Check(key); }
static inline int is_list(PyObject *keys) { return Py_TYPE(keys) == &PyList_Type || PyList_Check(keys); }

static int hash_of(PyObject *key, uint64_t seed, uint64_t *hash) {
    Py_ssize_t length;
    char *bytes;
    PyObject *converted;
    if (is_text(key)) {
        const char *text = PyUnicode_AsUTF8AndSize(key, &length);
        if (text) {
            *hash = ee_hash((const unsigned char *)text, (size_t)length, seed);
            return 0;
        }
        if (!PyErr_ExceptionMatches(PyExc_UnicodeError))
            return -1;
        PyErr_Clear();
    } else if (PyBytes_Check(key)) {
        if (PyBytes_AsStringAndSize(key, &bytes, &length) < 0)
            return -1;
        *hash = ee_hash((const unsigned char *)bytes, (size_t)length, seed);
        return 0;
    }
    converted = ask("to_bytes", Py_BuildValue("(O)", key));
    if (!converted)
        return -1;
    if (PyBytes_AsStringAndSize(converted, &bytes, &length) < 0) {
        Py_DECREF(converted);
        return -1;
    }
    *hash = ee_hash((const unsigned char *)bytes, (size_t)length, seed);
    Py_DECREF(converted);
    return 0;
}

static Py_ssize_t length_of(PyObject *keys) { return is_list(keys) ? PyList_Size(keys) : PyTuple_Size(keys); }

static PyObject *item(PyObject *keys, Py_ssize_t i) {
    return is_list(keys) ? PyList_GetItem(keys, i) : PyTuple_GetItem(keys, i);
}

/* Hash n keys of a list or a tuple: all of them before the interpreter may be let go, since a list can change. Keys lie
 * anywhere in memory, so several are on their way at a time; what a key's own code does to the list cannot hurt them. */
static int hash_all(PyObject *keys, Py_ssize_t n, uint64_t seed, uint64_t *hashes) {
    PyObject *few[UNDER_WAY];
    int failed = 0;
    for (Py_ssize_t start = 0; start < n && !failed; start += UNDER_WAY) {
        Py_ssize_t count = 0;
        for (; count < UNDER_WAY && start + count < n; count++) {
            PyObject *key = item(keys, start + count);
            if (!key) {
                failed = 1;
                break;
            }
            few[count] = Py_NewRef(key);
            __builtin_prefetch(key);
            __builtin_prefetch((char *)key + LINE);
        }
        for (Py_ssize_t i = 0; i < count; i++) {
            failed = failed || hash_of(few[i], seed, &hashes[start + i]);
            Py_DECREF(few[i]);
        }
    }
    return failed ? -1 : 0;
}

static int refuse_row(const Index *index, int64_t row) {
    PyObject *answer = ask("refuse_row", Py_BuildValue("(Ln)", (long long)row, (Py_ssize_t)index->row_count));
    Py_XDECREF(answer);
    return -1;
}

static PyObject *index_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    PyObject *pilots, *slots;
    unsigned long long seed;
    Py_ssize_t row_count;
    Index *self;
    if (keywords && PyDict_Size(keywords)) {
        PyErr_SetString(PyExc_TypeError, "expected pilots, slots, seed and row_count by their places");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "OOKn", &pilots, &slots, &seed, &row_count))
        return NULL;
    if (!array_of(pilots, "index_pilots", NPY_UINT16, 1) || !array_of(slots, "index_slots", NPY_UINT32, 2))
        return NULL;
    if (PyArray_DIM((PyArrayObject *)slots, 1) != 2 || row_count < 0 ||
        (PyArray_DIM((PyArrayObject *)slots, 0) && !PyArray_DIM((PyArrayObject *)pilots, 0))) {
        PyErr_SetString(PyExc_ValueError, "expected pilots and slots of a key index");
        return NULL;
    }
    self = (Index *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self)
        return NULL;
    self->index.pilots = (const unsigned char *)PyArray_DATA((PyArrayObject *)pilots);
    self->index.slots = (const unsigned char *)PyArray_DATA((PyArrayObject *)slots);
    self->index.bucket_count = (uint64_t)PyArray_DIM((PyArrayObject *)pilots, 0);
    self->index.slot_count = (uint64_t)PyArray_DIM((PyArrayObject *)slots, 0);
    self->index.seed = seed;
    self->row_count = (size_t)row_count;
    self->pilots = Py_NewRef(pilots);
    self->slots = Py_NewRef(slots);
    return (PyObject *)self;
}

static void index_free(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(((Index *)object)->pilots);
    Py_XDECREF(((Index *)object)->slots);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* Return the row of a key, -1 for an unknown one, or -2 with an error set. */
static int64_t find_one(const Index *index, PyObject *key) {
    uint64_t hash;
    int64_t row;
    if (hash_of(key, index->index.seed, &hash))
        return -2;
    row = ee_find(&index->index, hash);
    if (row >= 0 && (uint64_t)row >= index->row_count)
        return refuse_row(index, row) - 1;
    return row;
}

static PyObject *index_find(PyObject *self, PyObject *key) {
    int64_t row = find_one((const Index *)self, key);
    return row < -1 ? NULL : PyLong_FromLongLong(row);
}

/* Find the rows of keys in a list or a tuple. hashes and rows may be the same memory. */
static int find_many(const Index *index, PyObject *keys, Py_ssize_t n, uint64_t *hashes, int64_t *rows) {
    int64_t highest = -1;
    PyThreadState *left;
    if (hash_all(keys, n, index->index.seed, hashes))
        return -1;
    left = leave((size_t)n * NUMBERS_A_KEY);
    ee_find_all(&index->index, hashes, (size_t)n, rows);
    come_back(left);
    for (Py_ssize_t i = 0; i < n; i++)
        highest = rows[i] > highest ? rows[i] : highest;
    return highest >= 0 && (uint64_t)highest >= index->row_count ? refuse_row(index, highest) : 0;
}

static PyObject *index_find_all(PyObject *self, PyObject *keys) {
    PyObject *sequence, *found;
    npy_intp n;
    if (is_list(keys) || PyTuple_Check(keys))
        sequence = Py_NewRef(keys);
    else if (!(sequence = PySequence_List(keys)))
        return NULL;
    n = length_of(sequence);
    found = PyArray_SimpleNew(1, &n, NPY_INT64);
    if (found) {
        void *rows = PyArray_DATA((PyArrayObject *)found);
        if (find_many((const Index *)self, sequence, n, rows, rows))
            Py_CLEAR(found);
    }
    Py_DECREF(sequence);
    return found;
}

static PyMethodDef index_methods[] = {
    {"find", index_find, METH_O, "Return the row of a key, or -1."},
    {"find_all", index_find_all, METH_O, "Return the row (n,) of each key, -1 where it is unknown."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot index_slots[] = {
    {Py_tp_doc, "From keys to rows: see edge_embed.kernels.pure.Index."},
    {Py_tp_new, index_new},
    {Py_tp_dealloc, index_free},
    {Py_tp_methods, index_methods},
    {0, NULL},
};

static PyType_Spec index_spec = {
    "edge_embed.kernels._native.Index", sizeof(Index), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, index_slots};

/* Rows */

static const char *const codec_names[] = {"float32", "float16", "int8", "int4", "plane", "pq", "opq", "rq"};

/* Return a tensor by its name, checked; -1 for an axis of any length, which is then written to ``shape``. */
static const unsigned char *tensor(PyObject *tensors, const char *name, int type, int axes, npy_intp *shape) {
    PyObject *object = PyMapping_GetItemString(tensors, name);
    PyArrayObject *array;
    if (!object)
        return NULL;
    if (PyArray_Check(object) && !PyArray_IS_C_CONTIGUOUS((PyArrayObject *)object)) {
        /* An exporter's intermediate; what is mapped from a bundle is laid out as it must be. */
        PyObject *laid_out = PyArray_NewCopy((PyArrayObject *)object, NPY_CORDER);
        Py_DECREF(object);
        if (!(object = laid_out) || PyDict_SetItemString(tensors, name, object))
            return NULL;
    }
    array = array_of(object, name, type, axes);
    /* The mapping was copied into a dict of our own, which keeps the array. */
    Py_DECREF(object);
    if (!array)
        return NULL;
    for (int axis = 0; axis < axes; axis++) {
        npy_intp found = PyArray_DIM(array, axis);
        if (shape[axis] < 0)
            shape[axis] = found;
        else if (shape[axis] != found) {
            PyErr_Format(PyExc_ValueError, "%s: expected %zd on axis %d, found %zd", name, (Py_ssize_t)shape[axis],
                         axis, (Py_ssize_t)found);
            return NULL;
        }
    }
    return (const unsigned char *)PyArray_DATA(array);
}

static int read_codebooks(ee_rows *rows, PyObject *tensors) {
    npy_intp n = (npy_intp)rows->row_count, d = (npy_intp)rows->dimensions, levels = 256;
    npy_intp codes[2] = {n, -1}, books[3] = {-1, 256, rows->codec == EE_RQ ? d : -1}, rotation[2] = {d, -1};
    if (!(rows->rows = tensor(tensors, "rows", NPY_UINT8, 2, codes)))
        return -1;
    books[0] = codes[1];
    if (!(rows->codebooks = tensor(tensors, "codebooks", NPY_FLOAT32, 3, books)) ||
        !(rows->length_codes = tensor(tensors, "length_codes", NPY_UINT8, 1, &n)) ||
        !(rows->length_levels = tensor(tensors, "length_levels", NPY_FLOAT32, 1, &levels)))
        return -1;
    rows->row_bytes = rows->books = (size_t)books[0];
    rows->width = (size_t)books[2];
    rotation[1] = books[0] * books[2];
    if (rows->codec == EE_OPQ && !(rows->rotation = tensor(tensors, "rotation", NPY_FLOAT32, 2, rotation)))
        return -1;
    if (!rows->books || !rows->width ||
        (rows->codec == EE_PQ && (rows->books * rows->width < rows->dimensions ||
                                  (rows->books - 1) * rows->width >= rows->dimensions))) {
        PyErr_SetString(PyExc_ValueError, "codebooks: expected parts that make the dimensions");
        return -1;
    }
    return 0;
}

static int read_tensors(ee_rows *rows, PyObject *tensors) {
    static const int types[] = {NPY_FLOAT32, NPY_FLOAT16, NPY_INT8, NPY_UINT8, NPY_UINT8};
    static const size_t sizes[] = {4, 2, 1};
    npy_intp d = (npy_intp)rows->dimensions, shape[2] = {-1, d}, blocks[2];
    PyObject *first = PyMapping_GetItemString(tensors, "rows");
    if (!first)
        return -1;
    if (PyArray_Check(first) && PyArray_NDIM((PyArrayObject *)first))
        shape[0] = PyArray_DIM((PyArrayObject *)first, 0);
    Py_DECREF(first);
    rows->row_count = shape[0] < 0 ? 0 : (size_t)shape[0];
    if (rows->codec >= EE_PQ)
        return read_codebooks(rows, tensors);
    if (rows->codec >= EE_INT4)
        shape[1] = (d + 1) / 2;
    rows->row_bytes = rows->codec >= EE_INT4 ? (size_t)shape[1] : sizes[rows->codec] * (size_t)d;
    if (!(rows->rows = tensor(tensors, "rows", types[rows->codec], 2, shape)))
        return -1;
    blocks[0] = shape[0];
    blocks[1] = (d + EE_INT4_BLOCK - 1) / EE_INT4_BLOCK;
    if (((rows->codec == EE_INT8 || rows->codec == EE_PLANE) &&
         !(rows->scales = tensor(tensors, "scales", NPY_FLOAT32, 1, blocks))) ||
        (rows->codec == EE_INT4 && !(rows->scales = tensor(tensors, "scales", NPY_FLOAT16, 2, blocks))))
        return -1;
    return 0;
}

static PyObject *rows_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    const char *codec;
    PyObject *given, *tensors;
    Py_ssize_t dimensions;
    size_t number = 0, known = sizeof codec_names / sizeof *codec_names;
    Rows *self;
    if (keywords && PyDict_Size(keywords)) {
        PyErr_SetString(PyExc_TypeError, "expected codec, tensors and dimensions by their places");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "sOn", &codec, &given, &dimensions))
        return NULL;
    while (number < known && strcmp(codec, codec_names[number]))
        number++;
    if (number == known || dimensions < 1) {
        PyErr_Format(PyExc_ValueError, "expected a codec and its dimensions, found '%s' of %zd", codec, dimensions);
        return NULL;
    }
    tensors = PyDict_New();
    if (!tensors || PyDict_Update(tensors, given)) {
        Py_XDECREF(tensors);
        return NULL;
    }
    self = (Rows *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self) {
        Py_DECREF(tensors);
        return NULL;
    }
    self->tensors = tensors;
    self->rows.codec = (ee_codec)number;
    self->rows.dimensions = (size_t)dimensions;
    if (read_tensors(&self->rows, tensors)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void rows_free(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(((Rows *)object)->tensors);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

/* Decode checked ids into ``out``, without the interpreter where that pays. */
static int decode_into(const ee_rows *rows, const int64_t *ids, size_t n, float *out) {
    size_t needed = ee_scratch(rows);
    float *scratch = needed ? PyMem_Malloc(needed * sizeof *scratch) : NULL;
    PyThreadState *left;
    if (needed && !scratch) {
        PyErr_NoMemory();
        return -1;
    }
    left = leave(n * rows->dimensions);
    kernels->decode(rows, ids, n, out, scratch);
    come_back(left);
    PyMem_Free(scratch);
    return 0;
}

static PyObject *rows_decode(PyObject *self, PyObject *argument) {
    const ee_rows *rows = &((const Rows *)self)->rows;
    PyArrayObject *ids = whole_numbers(argument, "ids", 1);
    PyObject *vectors = NULL;
    size_t n;
    if (!ids)
        return NULL;
    n = (size_t)PyArray_DIM(ids, 0);
    if (rows_there(rows, numbers(ids), n))
        vectors = new_vectors((npy_intp)n, (npy_intp)rows->dimensions);
    if (vectors && decode_into(rows, numbers(ids), n, floats(vectors)))
        Py_CLEAR(vectors);
    drop(ids);
    return vectors;
}

static int mode_of(PyObject *object) {
    static const char *const names[] = {"sum", "mean", "max"};
    for (int mode = 0; mode < 3; mode++)
        if (PyUnicode_Check(object) && !PyUnicode_CompareWithASCIIString(object, names[mode]))
            return mode;
    PyErr_Format(PyExc_ValueError, "expected a mode of sum, mean and max, found %R", object);
    return -1;
}

/* Return the sum of counts, which are not negative, or -1. */
static int64_t total_of(PyArrayObject *counts) {
    const int64_t *each = numbers(counts);
    int64_t total = 0;
    for (npy_intp i = 0; i < PyArray_DIM(counts, 0); i++) {
        if (each[i] < 0 || total > INT64_MAX - each[i])
            return -1;
        total += each[i];
    }
    return total;
}

static int pool_into(const ee_rows *rows, const int64_t *ids, const int64_t *counts, size_t b, const float *weights,
                     ee_mode mode, float *out, size_t n) {
    float few[2 * 1024], *scratch = few;
    size_t needed = rows->dimensions + ee_scratch(rows);
    PyThreadState *left;
    if (needed > sizeof few / sizeof *few && !(scratch = PyMem_Malloc(needed * sizeof *scratch))) {
        PyErr_NoMemory();
        return -1;
    }
    left = leave(n * rows->dimensions);
    kernels->pool(rows, ids, counts, b, weights, mode, out, scratch);
    come_back(left);
    if (scratch != few)
        PyMem_Free(scratch);
    return 0;
}

/* Pool rows by arguments that nobody else can change; ``weights`` may be null. */
static PyObject *pool_rows(const ee_rows *rows, PyArrayObject *ids, PyArrayObject *counts, PyArrayObject *weights,
                           PyObject *named) {
    size_t n = (size_t)PyArray_DIM(ids, 0);
    npy_intp b = PyArray_DIM(counts, 0);
    PyObject *pooled;
    int mode;
    if (total_of(counts) != (int64_t)n || (weights && (size_t)PyArray_DIM(weights, 0) != n)) {
        PyErr_SetString(PyExc_ValueError, "expected counts and weights of as many rows as there are ids");
        return NULL;
    }
    if ((mode = mode_of(named)) < 0 || !rows_there(rows, numbers(ids), n))
        return NULL;
    pooled = new_vectors(b, (npy_intp)rows->dimensions);
    if (pooled && pool_into(rows, numbers(ids), numbers(counts), (size_t)b,
                            weights ? (const float *)PyArray_DATA(weights) : NULL, (ee_mode)mode, floats(pooled), n))
        Py_CLEAR(pooled);
    return pooled;
}

static PyObject *rows_pool(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    PyArrayObject *ids, *counts = NULL, *weights = NULL;
    PyObject *pooled = NULL;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "expected ids, counts, weights and mode");
        return NULL;
    }
    if ((ids = whole_numbers(arguments[0], "ids", 1)) && (counts = whole_numbers(arguments[1], "counts", 1)) &&
        (arguments[2] == Py_None || (weights = copy_of(arguments[2], "weights", NPY_FLOAT32, 1))))
        pooled = pool_rows(&((const Rows *)self)->rows, ids, counts, weights, arguments[3]);
    drop(ids);
    drop(counts);
    drop(weights);
    return pooled;
}

static PyObject *score_rows(const ee_rows *rows, PyArrayObject *query) {
    const float *asked = (const float *)PyArray_DATA(query);
    npy_intp n = (npy_intp)rows->row_count;
    PyObject *products;
    float *scratch;
    if ((size_t)PyArray_DIM(query, 0) != rows->dimensions) {
        PyErr_Format(PyExc_ValueError, "expected a query of %zd dimensions, found %zd", (Py_ssize_t)rows->dimensions,
                     (Py_ssize_t)PyArray_DIM(query, 0));
        return NULL;
    }
    scratch = PyMem_Malloc(ee_scan_scratch(rows) * sizeof *scratch);
    if (!scratch)
        return PyErr_NoMemory();
    products = PyArray_SimpleNew(1, &n, NPY_FLOAT32);
    if (products) {
        PyThreadState *left = leave(rows->row_count * rows->dimensions);
        ee_query ready = kernels->prepare(rows, asked, scratch);
        kernels->scores(rows, &ready, 0, rows->row_count, ee_rows_ahead(rows), floats(products));
        come_back(left);
    }
    PyMem_Free(scratch);
    return products;
}

static PyObject *rows_scores(PyObject *self, PyObject *argument) {
    PyArrayObject *query = vectors_of(argument, "query", 1);
    PyObject *products = query ? score_rows(&((const Rows *)self)->rows, query) : NULL;
    drop(query);
    return products;
}

/* Whether runs (r, 2) lie inside the table. */
static int runs_there(const ee_rows *rows, PyArrayObject *runs) {
    const int64_t *ends = numbers(runs);
    for (npy_intp i = 0; i < PyArray_DIM(runs, 0); i++)
        if (ends[2 * i] < 0 || ends[2 * i] > ends[2 * i + 1] || (uint64_t)ends[2 * i + 1] > rows->row_count) {
            PyErr_Format(PyExc_IndexError, "expected runs of rows from 0 to %lld, found %lld to %lld",
                         (long long)rows->row_count, (long long)ends[2 * i], (long long)ends[2 * i + 1]);
            return 0;
        }
    return 1;
}

/* Scan for the queries of ``scan``, and compare what was found with ``finer``, if that is another table; the room for
 * all of it is made here. Return -1 with an error if there is none. */
static int scan_into(ee_scan *scan, const ee_rows *finer, size_t length, const float *asked, const int64_t *without,
                     size_t k, int64_t *found, float *scores) {
    size_t d = finer->dimensions, coarse = ee_scan_scratch(scan->rows), fine = ee_scan_scratch(finer), n = finer->row_count;
    size_t room = length < n / 2 ? 2 * length + 1 : n + 1;
    ee_query *queries = PyMem_Calloc(scan->q, sizeof *queries);
    ee_best *best = PyMem_Calloc(scan->q, sizeof *best);
    float *scratch = PyMem_Calloc(scan->q * coarse + fine, sizeof *scratch);
    ee_hit *hits = scan->q <= PY_SSIZE_T_MAX / sizeof *hits / room ? PyMem_Malloc(scan->q * room * sizeof *hits) : NULL;
    int is_whole = -1;
    if (!queries || !best || !scratch || !hits) {
        PyErr_NoMemory();
    } else {
        PyThreadState *left = leave(n * d);
        for (size_t q = 0; q < scan->q; q++) {
            ee_best none = {0, length, room, hits + q * room, ee_length(asked + q * d, d), without[q], 0, 0, 0};
            queries[q] = kernels->prepare(scan->rows, asked + q * d, scratch + q * coarse);
            best[q] = none;
        }
        scan->queries = queries;
        is_whole = ee_nearest(kernels, scan, best);
        for (size_t q = 0; q < scan->q; q++) {
            if (finer != scan->rows) {
                ee_query query = kernels->prepare(finer, asked + q * d, scratch + scan->q * coarse);
                ee_compare(kernels, finer, scan->norms, &query, k, &best[q]);
            }
            ee_in_order(&best[q]);
            for (size_t i = 0; i < k; i++) {
                found[q * k + i] = i < best[q].count ? ee_row_of(best[q].hits[i]) : -1;
                scores[q * k + i] = i < best[q].count ? ee_score_of(best[q].hits[i]) : 0;
            }
        }
        come_back(left);
    }
    PyMem_Free(queries);
    PyMem_Free(best);
    PyMem_Free(scratch);
    PyMem_Free(hits);
    return is_whole;
}

/* What a search is asked, in arrays of which none but queries and norms can be changed. */
typedef struct {
    PyArrayObject *runs, *wanted, *without, *queries, *norms, *bases;
} Asked;

/* Whether an array has a number for each query and run, if it is there. */
static int is_by_run(PyArrayObject *array, const Asked *asked) {
    return !array || (PyArray_DIM(array, 0) == PyArray_DIM(asked->queries, 0) &&
                      PyArray_DIM(array, 1) == PyArray_DIM(asked->runs, 0));
}

static PyObject *search_rows(ee_scan *scan, const ee_rows *rows, const Asked *asked, Py_ssize_t k, Py_ssize_t length) {
    PyArrayObject *wanted = asked->wanted;
    const float *queries = (const float *)PyArray_DATA(asked->queries);
    npy_intp shape[2] = {PyArray_DIM(asked->queries, 0), k};
    PyObject *found, *scores;
    int is_whole = -1;
    if (k < 0 || (size_t)k > rows->row_count || length < k || (size_t)length > rows->row_count ||
        scan->rows->row_count != rows->row_count || scan->rows->dimensions != rows->dimensions ||
        PyArray_DIM(asked->runs, 1) != 2 || (size_t)PyArray_DIM(asked->queries, 1) != rows->dimensions ||
        (size_t)PyArray_DIM(asked->norms, 0) != rows->row_count || !PyArray_ISALIGNED(asked->norms) ||
        PyArray_DIM(asked->without, 0) != shape[0] ||
        !is_by_run(wanted, asked) || !is_by_run(asked->bases, asked)) {
        PyErr_Format(PyExc_ValueError,
                     "expected queries (q, %zd), norms (%zd,), k up to that, runs (r, 2), wanted and bases (q, r)",
                     (Py_ssize_t)rows->dimensions, (Py_ssize_t)rows->row_count);
        return NULL;
    }
    scan->norms = (const float *)PyArray_DATA(asked->norms);
    scan->q = (size_t)shape[0];
    scan->runs = numbers(asked->runs);
    scan->r = (size_t)PyArray_DIM(asked->runs, 0);
    scan->wanted = wanted ? (const unsigned char *)PyArray_DATA(wanted) : NULL;
    scan->bases = asked->bases ? floats((PyObject *)asked->bases) : NULL;
    if (!runs_there(rows, asked->runs))
        return NULL;
    found = PyArray_SimpleNew(2, shape, NPY_INT64);
    scores = PyArray_SimpleNew(2, shape, NPY_FLOAT32);
    if (found && scores)
        is_whole = scan_into(scan, rows, (size_t)length, queries, numbers(asked->without), (size_t)k,
                             (int64_t *)PyArray_DATA((PyArrayObject *)found), floats(scores));
    if (is_whole < 0) {
        Py_XDECREF(found);
        Py_XDECREF(scores);
        return NULL;
    }
    return Py_BuildValue("(NNO)", found, scores, is_whole ? Py_True : Py_False);
}

static PyObject *rows_nearest(PyObject *self, PyObject *const *arguments, Py_ssize_t count) {
    const ee_rows *rows = &((const Rows *)self)->rows;
    Asked asked = {NULL, NULL, NULL, NULL, NULL, NULL};
    ee_scan scan = {rows, NULL, NULL, 0, NULL, 0, NULL, NULL, 0};
    PyObject *answer = NULL;
    Py_ssize_t k, length;
    if (count != 10 || (arguments[7] != Py_None && Py_TYPE(arguments[7]) != rows_type)) {
        PyErr_SetString(PyExc_TypeError,
                        "expected queries, norms, k, runs, wanted, without, deadline_ns, plane, length and bases");
        return NULL;
    }
    k = PyLong_AsSsize_t(arguments[2]);
    length = arguments[7] == Py_None ? k : PyLong_AsSsize_t(arguments[8]);
    if (arguments[7] != Py_None)
        scan.rows = &((const Rows *)arguments[7])->rows;
    scan.deadline_ns = PyLong_AsLongLong(arguments[6]);
    if (PyErr_Occurred())
        return NULL;
    /* Copies first: while they are made others may run, who could reshape what is taken as it is. */
    if ((asked.runs = whole_numbers(arguments[3], "runs", 2)) &&
        (asked.without = whole_numbers(arguments[5], "without", 1)) &&
        (arguments[4] == Py_None || (asked.wanted = copy_of(arguments[4], "wanted", NPY_BOOL, 2))) &&
        (arguments[9] == Py_None || (asked.bases = copy_of(arguments[9], "bases", NPY_FLOAT32, 2))) &&
        (asked.queries = vectors_of(arguments[0], "queries", 2)) &&
        (asked.norms = array_of(arguments[1], "norms", NPY_FLOAT32, 1)))
        answer = search_rows(&scan, rows, &asked, k, length);
    drop(asked.runs);
    drop(asked.without);
    drop(asked.wanted);
    drop(asked.bases);
    drop(asked.queries);
    return answer;
}

static PyMethodDef rows_methods[] = {
    {"decode", rows_decode, METH_O, "Return the vectors (n, d) of ids (n,)."},
    {"pool", (PyCFunction)(void (*)(void))rows_pool, METH_FASTCALL,
     "Return one vector for each run of rows: ids (n,), counts (b,), weights (n,) or None, mode."},
    {"scores", rows_scores, METH_O, "Return the dot product (n,) of every row with the query (d,)."},
    {"nearest", (PyCFunction)(void (*)(void))rows_nearest, METH_FASTCALL,
     "Return the k best rows (q, k) of each query, their cosines (q, k), and whether all runs were looked at."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot rows_slots[] = {
    {Py_tp_doc, "A table's vectors behind their codec: see edge_embed.kernels.pure."},
    {Py_tp_new, rows_new},
    {Py_tp_dealloc, rows_free},
    {Py_tp_methods, rows_methods},
    {0, NULL},
};

static PyType_Spec rows_spec = {
    "edge_embed.kernels._native.Rows", sizeof(Rows), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE, rows_slots};

/* The plain request, in one step */

/* Bytes that somebody else may change, and what they were when they were last read. */
typedef struct {
    Py_buffer now;
    PyObject *then;
} Watched;

#define MOST_WATCHED 2

typedef struct {
    PyObject_HEAD
    PyObject *index, *rows; /* null: not of these kernels, or none */
    ee_mode mode;
    int64_t padding_row;
    Watched watched[MOST_WATCHED];
    Py_ssize_t watched_count;
    PyObject *noticed;
    int is_noticed; /* who follows was told, and replaces the shortcut: until then it answers as before */
} Shortcut;

/* Whether there is news that nobody follows: then nothing is answered here. -1 with an error. */
static int has_news(Shortcut *self) {
    for (Py_ssize_t i = 0; i < self->watched_count && !self->is_noticed; i++) {
        const Watched *watched = &self->watched[i];
        if (memcmp(watched->now.buf, PyBytes_AsString(watched->then), (size_t)watched->now.len)) {
            PyObject *follows = PyObject_CallNoArgs(self->noticed);
            int is_followed = follows ? PyObject_IsTrue(follows) : -1;
            Py_XDECREF(follows);
            if (is_followed <= 0)
                return is_followed ? -1 : 1;
            self->is_noticed = 1;
        }
    }
    return 0;
}

static int watch(Shortcut *self, PyObject *pairs) {
    Py_ssize_t count = PyTuple_Size(pairs);
    if (count > MOST_WATCHED)
        count = -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        Watched *watched = &self->watched[i];
        PyObject *now, *then;
        if (!PyArg_ParseTuple(PyTuple_GetItem(pairs, i), "OS", &now, &then) ||
            PyObject_GetBuffer(now, &watched->now, PyBUF_SIMPLE))
            return -1;
        watched->then = Py_NewRef(then);
        self->watched_count++;
        if (PyBytes_Size(then) != watched->now.len)
            count = -1;
    }
    if (count < 0)
        PyErr_Format(PyExc_ValueError, "expected at most %d pairs of bytes of one length to watch", MOST_WATCHED);
    return count < 0 ? -1 : 0;
}

static PyObject *shortcut_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords) {
    PyObject *index, *rows, *mode, *watched, *noticed;
    long long padding_row;
    int number;
    Shortcut *self;
    if (keywords && PyDict_Size(keywords)) {
        PyErr_SetString(PyExc_TypeError, "expected index, rows, mode, padding_row, watched and noticed by their places");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "OOOLO!O", &index, &rows, &mode, &padding_row, &PyTuple_Type, &watched,
                          &noticed) ||
        (number = mode_of(mode)) < 0)
        return NULL;
    self = (Shortcut *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!self)
        return NULL;
    self->index = Py_TYPE(index) == index_type ? Py_NewRef(index) : NULL;
    self->rows = Py_TYPE(rows) == rows_type ? Py_NewRef(rows) : NULL;
    self->mode = (ee_mode)number;
    self->padding_row = padding_row;
    self->noticed = Py_NewRef(noticed);
    if (watch(self, watched)) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void shortcut_free(PyObject *object) {
    PyTypeObject *type = Py_TYPE(object);
    Shortcut *self = (Shortcut *)object;
    Py_XDECREF(self->index);
    Py_XDECREF(self->rows);
    Py_XDECREF(self->noticed);
    for (Py_ssize_t i = 0; i < self->watched_count; i++) {
        PyBuffer_Release(&self->watched[i].now);
        Py_DECREF(self->watched[i].then);
    }
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *lookup_many(const Index *index, const ee_rows *rows, PyObject *keys) {
    Py_ssize_t n = length_of(keys);
    int64_t few[FEW], *ids = n <= FEW ? few : PyMem_Malloc((size_t)n * sizeof *ids);
    PyObject *vectors = NULL;
    Py_ssize_t known = 0;
    if (!ids)
        return PyErr_NoMemory();
    if (!find_many(index, keys, n, (uint64_t *)ids, ids)) {
        while (known < n && ids[known] >= 0)
            known++;
        if (known < n)
            vectors = Py_NewRef(Py_None);
        else if (rows_there(rows, ids, (size_t)n)) {
            vectors = new_vectors(n, (npy_intp)rows->dimensions);
            if (vectors && decode_into(rows, ids, (size_t)n, floats(vectors)))
                Py_CLEAR(vectors);
        }
    }
    if (ids != few)
        PyMem_Free(ids);
    return vectors;
}

static PyObject *shortcut_lookup(PyObject *object, PyObject *asked) {
    Shortcut *self = (Shortcut *)object;
    const Index *index = (const Index *)self->index;
    const ee_rows *rows;
    PyObject *vector;
    npy_intp d;
    int64_t row;
    int news;
    if (!self->index || !self->rows)
        Py_RETURN_NONE;
    if ((news = has_news(self)))
        return news < 0 ? NULL : Py_NewRef(Py_None);
    rows = &((const Rows *)self->rows)->rows;
    if (!is_text(asked) && !PyBytes_Check(asked)) {
        if (is_list(asked) || PyTuple_Check(asked))
            return lookup_many(index, rows, asked);
        Py_RETURN_NONE;
    }
    row = find_one(index, asked);
    if (row < 0) {
        if (row < -1)
            return NULL;
        Py_RETURN_NONE;
    }
    if (!rows_there(rows, &row, 1))
        return NULL;
    d = (npy_intp)rows->dimensions;
    vector = PyArray_SimpleNew(1, &d, NPY_FLOAT32);
    if (vector && decode_into(rows, &row, 1, floats(vector)))
        Py_CLEAR(vector);
    return vector;
}

/* Read ids from a list of Python's integers; return 0 if they are no plain rows of the table, -1 with an error. */
static int read_ids(const ee_rows *rows, PyObject *list, Py_ssize_t n, int64_t *ids) {
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *number = item(list, i);
        if (!number)
            return -1;
        if (!PyLong_CheckExact(number))
            return 0;
        ids[i] = PyLong_AsLongLong(number);
        if (ids[i] == -1 && PyErr_Occurred()) {
            PyErr_Clear();
            return 0;
        }
        if ((uint64_t)ids[i] >= rows->row_count)
            return 0;
    }
    return 1;
}

/* Read the rows of a flat list of keys or of ids; return as read_ids does. */
static int read_bag(const Index *index, const ee_rows *rows, PyObject *list, Py_ssize_t n, int64_t *ids) {
    PyObject *first = item(list, 0);
    if (!first)
        return -1;
    if (!is_text(first) && !PyBytes_Check(first))
        return read_ids(rows, list, n, ids);
    if (!index)
        return 0;
    for (Py_ssize_t i = 1; i < n; i++) {
        PyObject *key = item(list, i);
        if (!key)
            return -1;
        if (!is_text(key) && !PyBytes_Check(key))
            return 0;
    }
    if (find_many(index, list, n, (uint64_t *)ids, ids))
        return -1;
    for (Py_ssize_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint64_t)ids[i] >= rows->row_count)
            return 0;
    return 1;
}

static PyObject *shortcut_bag(PyObject *object, PyObject *const *arguments, Py_ssize_t count) {
    Shortcut *self = (Shortcut *)object;
    const ee_rows *rows;
    PyObject *list, *pooled = NULL;
    int64_t few[FEW], *ids, kept = 0;
    int plain, news, mode = self->mode;
    Py_ssize_t n;
    npy_intp d;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "expected a list and a mode or None");
        return NULL;
    }
    list = arguments[0];
    if (arguments[1] != Py_None && (mode = mode_of(arguments[1])) < 0) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    if (!self->rows || !is_list(list))
        Py_RETURN_NONE;
    if ((news = has_news(self)))
        return news < 0 ? NULL : Py_NewRef(Py_None);
    /* Only now: who was told of the news let the interpreter go, and the list may be another one. */
    if (!(n = PyList_Size(list)))
        Py_RETURN_NONE;
    rows = &((const Rows *)self->rows)->rows;
    ids = n <= FEW ? few : PyMem_Malloc((size_t)n * sizeof *ids);
    if (!ids)
        return PyErr_NoMemory();
    plain = read_bag((const Index *)self->index, rows, list, n, ids);
    if (!plain)
        pooled = Py_NewRef(Py_None);
    else if (plain > 0) {
        for (Py_ssize_t i = 0; i < n; i++)
            if (ids[i] != self->padding_row)
                ids[kept++] = ids[i];
        d = (npy_intp)rows->dimensions;
        pooled = PyArray_SimpleNew(1, &d, NPY_FLOAT32);
        if (pooled && pool_into(rows, ids, &kept, 1, NULL, (ee_mode)mode, floats(pooled), (size_t)kept))
            Py_CLEAR(pooled);
    }
    if (ids != few)
        PyMem_Free(ids);
    return pooled;
}

static PyMethodDef shortcut_methods[] = {
    {"lookup", shortcut_lookup, METH_O, "Return the vector (d,) of a key or the vectors (n, d) of a list of keys, or None."},
    {"bag", (PyCFunction)(void (*)(void))shortcut_bag, METH_FASTCALL,
     "Return the pooled vector (d,) of a flat list of keys or row ids, by a mode or the shortcut's own, or None."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot shortcut_slots[] = {
    {Py_tp_doc, "The plain request in one step: see edge_embed.kernels.pure.Shortcut."},
    {Py_tp_new, shortcut_new},
    {Py_tp_dealloc, shortcut_free},
    {Py_tp_methods, shortcut_methods},
    {0, NULL},
};

static PyType_Spec shortcut_spec = {
    "edge_embed.kernels._native.Shortcut", sizeof(Shortcut), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    shortcut_slots};

/* Functions of reference.py */

static PyObject *hash_key(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count) {
    uint64_t hash, seed;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "expected a key and a seed");
        return NULL;
    }
    seed = PyLong_AsUnsignedLongLong(arguments[1]);
    if ((seed == (uint64_t)-1 && PyErr_Occurred()) || hash_of(arguments[0], seed, &hash))
        return NULL;
    return PyLong_FromUnsignedLongLong(hash);
}

static PyObject *hash_keys(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count) {
    PyObject *keys, *hashes;
    uint64_t seed;
    npy_intp n;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "expected keys and a seed");
        return NULL;
    }
    seed = PyLong_AsUnsignedLongLong(arguments[1]);
    if (seed == (uint64_t)-1 && PyErr_Occurred())
        return NULL;
    if (is_list(arguments[0]) || PyTuple_Check(arguments[0]))
        keys = Py_NewRef(arguments[0]);
    else if (!(keys = PySequence_List(arguments[0])))
        return NULL;
    n = length_of(keys);
    hashes = PyArray_SimpleNew(1, &n, NPY_UINT64);
    if (hashes && hash_all(keys, n, seed, (uint64_t *)PyArray_DATA((PyArrayObject *)hashes)))
        Py_CLEAR(hashes);
    Py_DECREF(keys);
    return hashes;
}

static PyObject *pool_all(PyArrayObject *vectors, PyArrayObject *counts, PyObject *named) {
    const float *each = (const float *)PyArray_DATA(vectors);
    npy_intp b = PyArray_DIM(counts, 0), d = PyArray_DIM(vectors, 1);
    PyObject *pooled;
    int mode;
    if (total_of(counts) != (int64_t)PyArray_DIM(vectors, 0)) {
        PyErr_SetString(PyExc_ValueError, "expected counts of as many rows as there are vectors");
        return NULL;
    }
    if ((mode = mode_of(named)) < 0)
        return NULL;
    pooled = new_vectors(b, d);
    if (pooled) {
        PyThreadState *left = leave((size_t)PyArray_SIZE(vectors));
        kernels->pool_vectors(each, numbers(counts), (size_t)b, (size_t)d, (ee_mode)mode, floats(pooled));
        come_back(left);
    }
    return pooled;
}

static PyObject *pool(PyObject *Py_UNUSED(module), PyObject *const *arguments, Py_ssize_t count) {
    PyArrayObject *vectors = NULL, *counts;
    PyObject *pooled = NULL;
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "expected vectors, counts and a mode");
        return NULL;
    }
    if ((counts = whole_numbers(arguments[1], "counts", 1)) && (vectors = vectors_of(arguments[0], "vectors", 2)))
        pooled = pool_all(vectors, counts, arguments[2]);
    drop(counts);
    drop(vectors);
    return pooled;
}

#define FAST(name, doc) {#name, (PyCFunction)(void (*)(void))name, METH_FASTCALL, doc}

static PyMethodDef functions[] = {
    FAST(hash_key, "Return XXH64 of one key."),
    FAST(hash_keys, "Return XXH64 of many keys, (n,) uint64."),
    FAST(pool, "Return one vector for each run of vectors: see edge_embed.kernels.reference.pool."),
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_native", "The kernels in C.", -1, functions, NULL, NULL, NULL, NULL};

/* Return the spelling that the environment asks for, or set an error that names those that there are.
 * EDGE_EMBED_VARIANT=baseline asks for less than the processor has: for comparisons, and for a bug's trail. */
static const ee_kernels *chosen(const char *asked) {
    const ee_kernels *found = ee_choose(asked);
    char names[80] = "";
    if (found)
        return found;
    for (const ee_kernels *const *variant = ee_variants(); *variant; variant++) {
        strcat(names, *names ? ", " : "");
        strcat(names, (*variant)->name);
    }
    PyErr_Format(PyExc_ImportError, "EDGE_EMBED_VARIANT: expected one of %s, found '%s'", names, asked);
    return NULL;
}

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module, *shortcut_type;
    import_array();
    if (!(kernels = chosen(getenv("EDGE_EMBED_VARIANT"))))
        return NULL;
    index_type = (PyTypeObject *)PyType_FromSpec(&index_spec);
    rows_type = (PyTypeObject *)PyType_FromSpec(&rows_spec);
    shortcut_type = PyType_FromSpec(&shortcut_spec);
    module = PyModule_Create(&definition);
    if (!index_type || !rows_type || !shortcut_type || !module ||
        PyModule_AddObjectRef(module, "Index", (PyObject *)index_type) ||
        PyModule_AddObjectRef(module, "open_rows", (PyObject *)rows_type) ||
        PyModule_AddObjectRef(module, "Shortcut", shortcut_type) ||
        PyModule_AddStringConstant(module, "VARIANT", kernels->name)) {
        Py_XDECREF(module);
        return NULL;
    }
    return module;
}
