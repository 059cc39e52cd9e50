"""Several trainings in a row, and what their networks do together.

recipe: the checked form of a chain's config. preflight: are all pictures there?
run: the stages one after the
other, and when each is finished. ledger: what is finished, `chain.json`.
features: features of a stage, kept as long as they are those of its weights.
joint: two networks joined by the pictures that both embed.
"""
