// The functions of vec.h and vec_math.h on arrays, for each instruction set; used by vectors.cpp.

template <class T>
void narrow(const float* from, T* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(to + i, load(from + i));
}

template <class T>
void widen(const T* from, float* to, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) store(to + i, load(from + i));
}

inline void exponentials(const float* x, float* exp, float* expm1, int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const ExpPair e = exp_nonpositive(load(x + i));
    store(exp + i, e.exp);
    store(expm1 + i, e.expm1);
  }
}

#include "cpu/activation.h"

inline void activations(const float* x, float* exp, float* tanh, float* silu_of_x, float* mish_of_x,
                        int64_t n) {
  for (int64_t i = 0; i < n; i += kLanes) {
    const VecF v = load(x + i);
    const Exp e = exp_small(v);
    store(exp + i, e.scale * e.series + e.scale);
    store(tanh + i, half_tanh(v));
    store(silu_of_x + i, silu(v));
    store(mish_of_x + i, mish(v));
  }
}
