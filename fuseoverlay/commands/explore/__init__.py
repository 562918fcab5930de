"""`fuseoverlay explore`, the full-screen program; only this package imports textual.

Start with `model`, what the tree shows, and `app`, which has all panes. `comparing`, `model`,
`search`, `totals` and `content` know nothing of the screen.
"""
