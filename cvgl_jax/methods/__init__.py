"""One paper, one file: heads, loss, embedding, parameter groups.

Modules:
  contract: what the loop and the evaluators expect of a method; `Aux`;
    `load_pretrained`.
  university1652: the University-1652 baseline (instance loss on one classifier
    shared by all views) with its optional metric losses and USAM.
  frgeo: feature recombination by compass direction, weighted tuple loss.
  transgeo: two vision transformers; the second stage attends and zooms in.
  sample4geo: one ConvNeXt for both views, InfoNCE with a learned temperature.
  plcd: anchors and their drone pictures, in generations that teach the next.
"""
