"""One small network of each family of torchvision's, timm's and Keras's classifiers, with random weights.

A name is the library's own. A family is what shares a body and a head; where a library has a second head for the same
body (a distilled twin, a class token in place of a mean) it is a family of its own. `size`: where the network takes
one size only, or is built for it; the others are run at 224.
"""

from __future__ import annotations

from dataclasses import dataclass

LIBRARIES = ("torchvision", "timm", "keras")
SIZE = 224


@dataclass(frozen=True)
class Member:
    """One network to try."""

    library: str
    name: str
    size: int = SIZE

    @property
    def key(self) -> str:
        return f"{self.library}/{self.name}"


_TORCHVISION = (
    "swin_t convnext_tiny densenet121 efficientnet_b0 googlenet maxvit_t mnasnet0_5 mobilenet_v3_small "
    "regnet_y_400mf shufflenet_v2_x0_5 squeezenet1_1 swin_v2_t:256 vgg11 vit_b_32"
)
_TIMM = (
    "botnet26t_256:256 cait_xxs24_224 coat_tiny coatnet_nano_rw_224 convmixer_768_32 "
    "convnextv2_atto cs3darknet_s davit_tiny deit_tiny_distilled_patch16_224 dla34 edgenext_xx_small "
    "efficientformer_l1 efficientformerv2_s0 efficientnet_lite0 efficientvit_b0 efficientvit_m0 fasternet_t0 "
    "fastvit_t8 focalnet_tiny_srf gcvit_xxtiny ghostnet_050 gmlp_ti16_224 hgnetv2_b0 hiera_tiny_224 hrnet_w18_small "
    "inception_next_tiny inception_v4:299 lcnet_050 levit_128s mambaout_femto mixer_s32_224 mixnet_s "
    "mobilenetv4_conv_small mobileone_s0 mobilevit_xxs:256 mvitv2_tiny nest_tiny nextvit_small pit_ti_224 "
    "poolformer_s12 pvt_v2_b0 repghostnet_050 repvgg_a0 repvit_m0_9 resmlp_12_224 resnest14d resnetv2_18 rexnet_100 "
    "starnet_s1 swiftformer_xs swinv2_cr_tiny_224 tiny_vit_5m_224 tresnet_m twins_svt_small "
    "visformer_tiny vit_relpos_small_patch16_224 xception41:299 xcit_nano_12_p16_224 "
    "dm_nfnet_f0 beit_base_patch16_224"
)
_KERAS = "ConvNeXtTiny EfficientNetB0 EfficientNetV2B0 MobileNetV2 MobileNetV3Small NASNetMobile ResNet50V2 Xception"


def members(library: str) -> list[Member]:
    """The networks of one library, in alphabetical order."""
    names = {"torchvision": _TORCHVISION, "timm": _TIMM, "keras": _KERAS}[library].split()
    pairs = (n.partition(":") for n in names)
    return [Member(library, name, int(size or SIZE)) for name, _, size in pairs]
