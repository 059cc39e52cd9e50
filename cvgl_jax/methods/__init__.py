"""One paper, one file: heads, loss, embedding, parameter groups.

Modules:
  contract: what the loop and the evaluators expect of a method; `Aux`;
    `load_pretrained`.
  university1652: the University-1652 baseline (instance loss on one classifier
    shared by all views) with its optional metric losses and USAM.
"""
