"""`infercam report`: maps of one or more runs as an HTML page to look at, offline.

runs.py opens and scores the runs, pictures.py makes what the page shows of each image, chosen.py says which
images tell most, build.py puts it together, html.py writes the page from the sources in page/.
"""
