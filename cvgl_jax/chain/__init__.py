"""Several trainings in a row, and what their networks do together.

recipe: the checked form of a chain's config. preflight: what would fail later is
found before the first stage. run: the stages one after the other. ledger: which
are finished, `chain.json`. features: features of a stage, kept as long as they
are those of its weights. joint: two networks joined by the pictures that both
embed.
"""
