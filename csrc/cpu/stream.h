// Runs the layers on images of one size, with strips, rings and threads.
#pragma once

#include "network_plan.h"
#include "network_tasks.h"
#include "workspace.h"

namespace espan::cpu {

class Stream {
 public:
  // `layers` must outlive this object.
  Stream(const Layers& layers, int64_t height, int64_t width);
  Stream(const Stream&) = delete;

  // Returns the range of the output before it is clamped.
  Range run(const Images& images) const;

 private:
  NetworkKernels kernels_;
  Plan plan_;
  int64_t threads_;
  Workspace workspace_;
};

}  // namespace espan::cpu
