"""Commands for people on the leaf: what the agent would do, what it has done, and the way back, without the plane.

`parser` knows the words, `wish` where a state comes from, `look` reads the leaf and plans, `tell` makes texts of it.
`commands` puts them together. Nothing here decides what a leaf should look like; that is the same code as the agent's.
"""
