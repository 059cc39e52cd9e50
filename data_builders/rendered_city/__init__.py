"""A procedural city rendered by JAX; needs no download.

rendered_city_dataset_builder.py  configurations, records
shots.py       which pictures are taken of a place
cameras.py     satellite, drone, street, panorama: position and direction
conditions.py  sun, season, haze, sensor of a picture
scene.py       the world of a place as arrays: buildings, trees, viewpoints
layout.py      its plan: streets, lots, areas, car parks; shapes.py, styles.py
cars.py        cars of one hour; heights.py height maps for shadows
render.py      a picture: trace.py what a ray hits, ground.py and surface.py
               what that is made of (patterns.py), light.py shadows and sky
"""
