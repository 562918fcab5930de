"""What lies on disk: layer directories, what their attributes and whiteouts say, how they merge.

Imports `system` and `native`. Read `stack` first (layers and the directories in them), then
`whiteout` and `merge`.
"""
