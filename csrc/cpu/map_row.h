// Rows of feature maps between [pixel][channel] in memory and [group][pixel][lane] here.  Included
// after vec.h, as that file is.

// Ones in the first n lanes.
inline VecU first_lanes(int64_t n) {
  VecU mask = {};
  for (int i = 0; i < kLanes; ++i) mask[i] = i < n ? ~0u : 0u;
  return mask;
}

// What pads the channels stays in its lanes: products take one channel after the other.
template <class T>
inline void load_map(const MapRow& m) {
  const T* map = static_cast<const T*>(m.map);
  for (int64_t channel = 0; channel < m.channels; channel += kLanes) {
    float* row = m.row + channel / kLanes * m.plane;
    for (int64_t x = 0; x < m.pixels; ++x)
      store(row + x * kLanes, load(map + x * m.pitch + channel));
  }
}

template <class T>
inline void store_map(const MapRow& m) {
  T* map = static_cast<T*>(m.map);
  for (int64_t channel = 0; channel < m.pitch; channel += kLanes) {
    if (channel >= m.channels) {
      for (int64_t x = 0; x < m.pixels; ++x) store(map + x * m.pitch + channel, VecF{});
      continue;
    }
    const VecU mask = first_lanes(m.channels - channel);
    const float* row = m.row + channel / kLanes * m.plane;
    for (int64_t x = 0; x < m.pixels; ++x)
      store(map + x * m.pitch + channel, from_bits(bits(load(row + x * kLanes)) & mask));
  }
}

inline void load_row(const MapRow& m) {
  if (m.type == Element::float16) return load_map<Half>(m);
  if (m.type == Element::bfloat16) return load_map<BFloat16>(m);
  load_map<float>(m);
}

inline void store_row(const MapRow& m) {
  if (m.type == Element::float16) return store_map<Half>(m);
  if (m.type == Element::bfloat16) return store_map<BFloat16>(m);
  store_map<float>(m);
}
