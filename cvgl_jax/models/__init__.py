"""Backbones and shared layers, named and initialised after their torch originals.

Modules:
  layers: normalisation of pictures, torch's batch norm, pools, GeM, USAM and
    the ClassBlock head.
  resnet: ResNet-18/34/50/101 with torchvision's names.
  vgg: VGG-16 with batch norm with torchvision's names.
  backbones: a trunk by its name ('resnet50', 'vgg16_bn', ...).
  view_network: one trunk a view, one head for all.
  view_weights: published checkpoints and ImageNet weights for such a network.
  test_time: flip and multi-scale views of a picture at test time.
  torch_file: fetches and reads `.safetensors` and `.pth` files without executing them.
  torch_weights: puts what was read into a tree of variables, strictly.
"""
