// The schemas of all ops, and the Python module that loads the library.
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030a0000
#endif
#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <stdexcept>

#include "cpu/isa.h"

STABLE_TORCH_LIBRARY(espan, m) {
  m.def("gate(Tensor o, Tensor x) -> Tensor");
  m.def("gate_backward(Tensor grad, Tensor o, Tensor x) -> (Tensor, Tensor)");
  m.def("conv3x3(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
  m.def("conv3x3_weight_gradient(Tensor grad, Tensor x) -> (Tensor, Tensor)");
  m.def(
      "frequency_loss(Tensor sr, Tensor hr, float pixel, float hf, float dct, "
      "bool squared) -> (Tensor, Tensor)");
  m.def(
      "frequency_loss_gradient(Tensor sr, Tensor hr, Tensor scale, float pixel, "
      "float hf, float dct, bool squared) -> (Tensor, Tensor, Tensor)");
  m.def(
      "spab(Tensor x, Tensor packed, int channels, int convs, bool with_activation, "
      "str activation, str gate) -> (Tensor, Tensor)");
  m.def(
      "head(Tensor image, Tensor packed, Tensor? mean, int channels, int kernel, int unshuffle, "
      "str activation) -> Tensor");
  m.def(
      "tail(Tensor head, Tensor first, Tensor last, Tensor? activation, Tensor packed, "
      "int channels, int scale, ScalarType dtype, Tensor(a!)? flag, int last_kernel) -> Tensor");
  m.def(
      "upsample(Tensor near, Tensor last, Tensor packed, int channels, int scale, "
      "ScalarType dtype, Tensor(a!)? flag) -> Tensor");
  m.def(
      "network(Tensor image, Tensor packed, int[] layers, int unshuffle, int scale) "
      "-> (Tensor, Tensor)");
}

// setup.py passes the architectures unquoted, as in -DESPAN_CUDA_ARCHS=8.0,9.0+PTX.
#define ESPAN_TEXT_(...) #__VA_ARGS__
#define ESPAN_TEXT(...) ESPAN_TEXT_(__VA_ARGS__)

namespace {

PyObject* cuda_archs(PyObject*, PyObject*) {
  return PyUnicode_FromString(ESPAN_TEXT(ESPAN_CUDA_ARCHS));
}

PyObject* cuda_version(PyObject*, PyObject*) {
  return PyUnicode_FromString(ESPAN_TEXT(ESPAN_CUDA_VERSION));
}

PyObject* built_without_cuda_because(PyObject*, PyObject*) {
  return PyUnicode_FromString(ESPAN_TEXT(ESPAN_CUDA_ABSENT));
}

PyObject* cpu_path(PyObject*, PyObject*) {
  return PyUnicode_FromString(espan::cpu::name(espan::cpu::isa()));
}

PyObject* cpu_path_has_bfloat16(PyObject*, PyObject*) {
  return PyBool_FromLong(espan::cpu::has_bfloat16());
}

PyObject* select_cpu_path(PyObject*, PyObject* args) {
  const char* requested = nullptr;
  if (!PyArg_ParseTuple(args, "s", &requested)) return nullptr;
  try {
    espan::cpu::select(requested);
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"cuda_archs", cuda_archs, METH_NOARGS, "The CUDA architectures built in, 8.0,9.0+PTX, or ''."},
    {"cuda_version", cuda_version, METH_NOARGS, "The CUDA toolkit that built the kernels, or ''."},
    {"built_without_cuda_because", built_without_cuda_because, METH_NOARGS,
     "'cpu_requested', 'nvcc_not_found', or '' if the CUDA kernels are built in."},
    {"cpu_path", cpu_path, METH_NOARGS, "The path in use: amx, avx512, avx2 or portable."},
    {"cpu_path_has_bfloat16", cpu_path_has_bfloat16, METH_NOARGS,
     "Whether the path in use multiplies bf16 values: amx, or avx512 with avx512_bf16."},
    {"select_cpu_path", select_cpu_path, METH_VARARGS,
     "Select a path: auto, amx, avx512, avx2 or portable.  ValueError if it cannot run here."},
    {nullptr, nullptr, 0, nullptr}};

PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_C", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__C() { return PyModule_Create(&module); }
