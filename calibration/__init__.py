"""From images to what a network's tensors hold: the ranges that decide whether FP16 can carry them.

Needs numpy, onnx and onnxruntime; never torch.
"""

from engineworks.calibration.ranges import LARGEST_FP16, SMALLEST_FP16, beyond_fp16, observe_ranges

__all__ = ["LARGEST_FP16", "SMALLEST_FP16", "beyond_fp16", "observe_ranges"]
