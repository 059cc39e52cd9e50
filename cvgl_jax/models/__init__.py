"""Backbones and shared layers, named and initialised after their torch originals.

Modules:
  layers: normalisation of pictures, torch's batch norm, layer norm, pools, GeM,
    USAM and the ClassBlock head.
  resnet: ResNet-18/34/50/101 with torchvision's names.
  convnext: ConvNeXt-T/S/B with Facebook's names; renames timm's, torchvision's.
  depthwise: the depthwise convolution of ConvNeXt, fast on CPUs too.
  vit: distilled DeiT with chosen patches, attention maps, resized positions.
  vgg: VGG-16 with batch norm with torchvision's names.
  small_cnn: four strided convolutions, for small sets and CPUs.
  backbones: a trunk by its name ('resnet50', 'convnext_tiny', ...).
  recombination: four vectors of a map by compass direction; a backbone with
    them (FRGeo), or with the plain average (Sample4Geo).
  named_networks: the variables of several networks by name.
  zoom_weights: published weights and other runs for TransGeo's two stages.
  view_network: one trunk a view, one head for all.
  peer_network: a trunk a branch, one head that describes regions too (PLCD).
  view_weights: published checkpoints and ImageNet weights for such a network.
  test_time: flip and multi-scale views of a picture at test time.
  torch_file: fetches and reads `.safetensors` and `.pth` files without executing them.
  torch_weights: puts what was read into a tree of variables, strictly.
"""
