"""The tables of a reproduction → figures: a function a figure, rows in, Figure out.

They draw what the rows say and compute nothing but means, ranges and intervals over seeds;
`multilora.figures` knows which table each is drawn from.
"""
