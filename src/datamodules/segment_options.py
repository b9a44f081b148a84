"""The options by which segments are found and chosen, checked before anything is read."""

from .segmenters import DeviceSegmenter


def check_segment_options(
    segmenter: object, *, k_min: int, k_max: int, min_area: float, things: bool, stuff: bool
) -> None:
    """ValueError for what is out of range or contradicts another; see `segments`."""
    if not 0 <= k_min <= k_max <= 255 or k_max < 1:
        raise ValueError(
            f"datamodule.k_min = {k_min}, datamodule.k_max = {k_max}: expected 0 <= k_min <= k_max "
            "and k_max in 1..255"
        )
    if not 0 <= min_area <= 1:
        raise ValueError(f"datamodule.min_area = {min_area}, expected a share of the image in 0..1")
    if not things and not stuff:
        raise ValueError("datamodule.things and datamodule.stuff are both off: nothing to choose")
    if isinstance(segmenter, str) and segmenter != "stored":
        raise ValueError(
            f'datamodule.segmenter is {segmenter!r}, expected "stored", a segmenter, null'
        )
    named = segmenter == "stored" or isinstance(segmenter, DeviceSegmenter)
    if not named and not (things and stuff):
        raise ValueError(
            'datamodule.things and stuff need datamodule.segmenter = "stored" or a panoptic model'
        )
