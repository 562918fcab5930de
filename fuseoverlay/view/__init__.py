"""Looking into layers: what each of them holds, hides and wastes, without mounting them.

Start with `layerindex` (what is known of one layer) and `stack` (how layers show together).
`opened` says what an IMAGE means on the command line.
"""
