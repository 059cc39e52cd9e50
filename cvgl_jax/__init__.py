"""Cross-view geo-localization: train, evaluate and serve the published systems.

The README shows the tree; imports point one way, from `commands` through
`train` and `evaluate` to `experiment`, and from there to `methods`, `data`,
`evaluators`, `models`, `losses` and `retrieval`.
"""
