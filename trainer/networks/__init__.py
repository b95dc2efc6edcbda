"""The networks that the trainer fits: backbones at several levels, AffinityNet, DeepLab. Needs torch."""
