"""Figures of a reproduction: functions that take the rows of tables and return a Figure.

They compute nothing but means, ranges and intervals over seeds. `multilora.reproduction.figures`
says which tables each figure is drawn from.
"""
