"""Pictures as bytes and pixels: decoding what callers send, masks and sizes, and finished files
with the recipe inside. Pillow only; knows no HTTP, no job and no path on the disk, and draws
nothing.
"""
