"""TV-L1 by OpenCV's DualTVL1 (opencv-contrib-python): the oracle of the other backends."""

import cv2
import numpy as np

from preprocess.flow.parameters import TVL1Parameters
from shared.cli import RequestError


def available() -> bool:
    return hasattr(cv2, "optflow") and hasattr(cv2.optflow, "createOptFlow_DualTVL1")


def require() -> None:
    if not available():
        raise RequestError(f"flow backend 'opencv' needs cv2.optflow, which this OpenCV {cv2.__version__} is built "
                           "without; install opencv-contrib-python, or choose cpu")


def solve_pair(first, second, flow, parameters: TVL1Parameters) -> None:
    """Two frames (H, W) uint8 or float32 in [0, 255] -> flow (2, H, W) float32, px/frame, written in place."""
    p = parameters
    # A new instance a pair: DualTVL1 keeps the scales that a smaller image left it, and instances share no thread.
    method = cv2.optflow.createOptFlow_DualTVL1()
    method.setTau(p.tau)
    method.setLambda(p.lambda_)
    method.setTheta(p.theta)
    method.setScaleStep(p.zoom)
    method.setScalesNumber(p.scales)
    method.setWarpingsNumber(p.warps)
    method.setInnerIterations(p.iterations)
    method.setOuterIterations(p.outer)
    method.setEpsilon(p.epsilon)
    method.setMedianFiltering(p.median)
    if first.dtype == np.float32:            # it multiplies float input by 255
        first, second = first / np.float32(255), second / np.float32(255)
    flow[:] = method.calc(first, second, None).transpose(2, 0, 1)
