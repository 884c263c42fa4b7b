// The gate on flat arrays.  Compiled once per instruction set by for_each_isa.h.

// y = (o + x) (sigmoid(o) - 1/2)
inline VecF gated(VecF o, VecF x) { return (o + x) * sigmoid_parts(o).minus_half; }

template <class T>
void gate_forward(const T* o, const T* x, T* y, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, gated(load(o + i), load(x + i)));
  if (i < n) store_tail(y + i, gated(load_tail(o + i, n - i), load_tail(x + i, n - i)), n - i);
}

// grad_x = g (sigmoid(o) - 1/2),  grad_o = grad_x + g (o + x) sigmoid'(o)
template <class T>
void gate_backward(const T* g, const T* o, const T* x, T* grad_o, T* grad_x, int64_t n) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const VecF vg = load(g + i), vo = load(o + i), vx = load(x + i);
    const SigmoidPair s = sigmoid_parts(vo);
    store(grad_o + i, vg * (s.minus_half + (vo + vx) * s.slope));
    store(grad_x + i, vg * s.minus_half);
  }
  if (i < n) {
    const int64_t left = n - i;
    const VecF vg = load_tail(g + i, left), vo = load_tail(o + i, left);
    const VecF vx = load_tail(x + i, left);
    const SigmoidPair s = sigmoid_parts(vo);
    store_tail(grad_o + i, vg * (s.minus_half + (vo + vx) * s.slope), left);
    store_tail(grad_x + i, vg * s.minus_half, left);
  }
}
