"""Classes of the data sets that panoptic models are trained on: names, and which ones are things.

Things can be counted and keep one segment each; stuff cannot, and all of a class is one segment.
"""

import logging
from collections.abc import Mapping, Sequence

log = logging.getLogger(__name__)

# COCO panoptic (Lin et al. 2014; Kirillov et al. 2019), in the order of its category ids
COCO_THINGS = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,"
    "stop sign,parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,"
    "backpack,umbrella,handbag,tie,suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,"
    "baseball glove,skateboard,surfboard,tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,"
    "banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,chair,couch,"
    "potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,cell phone,microwave,"
    "oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush"
).split(",")
COCO_STUFF = (
    "banner,blanket,bridge,cardboard,counter,curtain,door-stuff,floor-wood,flower,fruit,gravel,"
    "house,light,mirror-stuff,net,pillow,platform,playingfield,railroad,river,road,roof,sand,sea,"
    "shelf,snow,stairs,tent,towel,wall-brick,wall-stone,wall-tile,wall-wood,water-other,"
    "window-blind,window-other,tree-merged,fence-merged,ceiling-merged,sky-other-merged,"
    "cabinet-merged,table-merged,floor-other-merged,pavement-merged,mountain-merged,grass-merged,"
    "dirt-merged,paper-merged,food-other-merged,building-other-merged,rock-merged,"
    "wall-other-merged,rug-merged"
).split(",")
COCO = (*COCO_THINGS, *COCO_STUFF)

# ADE20K's 150 classes (Zhou et al. 2017) with the 100 things of its instance challenge, as in
# MaskFormer's mask_former/data/datasets/register_ade20k_panoptic.py
NUM_ADE20K = 150
ADE20K_STUFF = frozenset(
    int(i)
    for i in (
        "0 1 2 3 4 5 6 9 11 13 16 17 21 25 26 28 29 34 40 46 48 51 52 54 59 60 61 63 68 77 79 84 "
        "91 94 96 99 100 101 105 106 109 113 114 117 122 128 131 140 141 145"
    ).split()
)

# Cityscapes' 19 classes (Cordts et al. 2016): from person on they are things
NUM_CITYSCAPES, FIRST_CITYSCAPES_THING = 19, 11


def class_labels(id2label: Mapping[int, str]) -> list[str]:
    """Labels in the order of the logits; "" for a placeholder such as LABEL_7.

    Checkpoints without names are COCO's if they have its 133 classes, as published ones do."""
    labels = [str(id2label[i]) for i in range(len(id2label))]
    if any(label != f"LABEL_{i}" for i, label in enumerate(labels)):
        return labels
    if len(labels) == len(COCO):
        return list(COCO)
    log.warning("the panoptic model names none of its %d classes: no texts", len(labels))
    return [""] * len(labels)


def is_thing(labels: Sequence[str], things: Sequence[int] | None = None) -> list[bool]:
    """Of each class. `things`: their numbers; None: known for COCO, ADE20K and Cityscapes.

    ValueError for another data set, or a number that is no class."""
    num = len(labels)
    if things is not None:
        if wrong := [i for i in things if not 0 <= i < num]:
            raise ValueError(
                f"datamodule.segmenter.things: found {wrong[0]}, expected 0 to {num - 1}"
            )
        chosen = set(things)
        return [i in chosen for i in range(num)]
    first = labels[0].split(",")[0]
    if num == len(COCO) and first == COCO[0]:
        return [i < len(COCO_THINGS) for i in range(num)]
    if num == NUM_ADE20K and first == "wall":
        return [i not in ADE20K_STUFF for i in range(num)]
    if num == NUM_CITYSCAPES and first == "road":
        return [i >= FIRST_CITYSCAPES_THING for i in range(num)]
    raise ValueError(
        f"datamodule.segmenter.things: expected the numbers of the things among the {num} classes "
        f"({first!r}, ...) of this model, found null"
    )
