// Gives vectors.cpp the functions of vec.h and vec_math.h on arrays, for each instruction set.

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
