// Runs layers on one image after another of one size: strips, rings, threads.
#pragma once

#include <vector>

#include "network_plan.h"
#include "network_tasks.h"
#include "workspace.h"

namespace espan::cpu {

class Stream {
 public:
  // `layers` must outlive it.
  Stream(const Layers& layers, int64_t height, int64_t width);
  Stream(const Stream&) = delete;
  ~Stream();

  // `outside`: the images and feature maps that the layers name.  `mean`: RGB, what a head
  // subtracts from its image.  Returns what the last layer's values were, if it is an upsample.
  Range run(const std::vector<Pixels>& outside, const float* mean = nullptr) const;

 private:
  NetworkKernels kernels_;
  Plan plan_;
  int64_t threads_;
  Workspace workspace_;
};

}  // namespace espan::cpu
