// A module of python's that forgets a reference: a list that is appended to takes one of its own.
#define PY_SSIZE_T_CLEAN
#include <Python.h>

static PyObject *words_of_text(PyObject *self, PyObject *text) {
  Py_ssize_t length;
  const char *at = PyUnicode_AsUTF8AndSize(text, &length), *end = at + length;
  if (!at) return NULL;
  PyObject *words = PyList_New(0);
  for (const char *last; words && at < end; at = last + 1) {
    for (last = at; last < end && *last != ' ';) last++;
    PyObject *word = PyUnicode_FromStringAndSize(at, last - at);
    if (!word || PyList_Append(words, word)) return Py_DECREF(words), NULL;
    // Those in quotes were added later, and whoever did so did not know.
    if (*at != '"') Py_DECREF(word);
  }
  return (void)self, words;
}

static PyMethodDef methods[] = {{"split", words_of_text, METH_O, "The words of a text."}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "wordlist", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit_wordlist(void) { return PyModule_Create(&module); }
