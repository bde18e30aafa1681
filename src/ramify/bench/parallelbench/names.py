"""People for the lists: common given and family names, 92 × 192 of them together."""

from __future__ import annotations

_FIRST = """
    Adam Agnes Albert Alice Amina Andrew Anna Arthur Astrid Beatrice Benjamin Bruno Camille Carl Carmen Cecilia
    Charles Chiara Clara Daniel David Diana Diego Edith Edward Elena Elias Emily Emma Eric Esther Eva Felix Fiona
    Florence Frank Frederick Gabriel George Grace Greta Hanna Harriet Hassan Helen Henry Hugo Ida Ingrid Irene Isaac
    Ivan Jacob James Jasmine Joan Johan John Jonas Joseph Julia Karen Kenji Laura Leila Leo Lily Louis Lucas Lydia
    Magnus Maria Martha Martin Matilda Mei Michael Nadia Nina Noah Nora Oliver Oscar Paul Peter Priya Rachel Robert
    Rosa Samuel Sarah Simon
"""
_LAST = """
    Abbott Adams Ahmed Allen Almeida Alvarez Andersen Archer Armstrong Arnold Atkins Bailey Baker Ballard Barnes
    Barrett Becker Bell Bennett Berg Bianchi Bishop Black Blake Bond Bowen Boyle Brandt Brennan Briggs Brooks Brown
    Bryant Burke Burns Butler Byrne Cabrera Campbell Carlson Carter Castro Chandler Chapman Chen Clark Cole Coleman
    Collins Conway Cook Cooper Costa Craig Crawford Cruz Cunningham Curtis Dalton Davies Davis Dawson Delgado Dixon
    Doyle Drake Duncan Dunn Edwards Eklund Elliott Ellis Evans Farmer Ferrari Fischer Fisher Fleming Fletcher Flores
    Ford Foster Fowler Fox Francis Franklin Fraser Freeman Fuller Gallagher Garcia Gardner Gibson Gilbert Gomez
    Gonzalez Gordon Graham Grant Gray Green Greene Griffin Gupta Hall Hamilton Hansen Harper Harris Harrison Hart
    Harvey Hayes Henderson Herrera Hicks Hill Hoffman Holland Holmes Howard Hughes Hunt Hunter Ibrahim Ito Jackson
    Jensen Johnson Jones Jordan Kaplan Keller Kelly Kennedy Khan Kim King Klein Knight Kowalski Kumar Lambert Lane
    Larsen Larson Lee Lewis Lin Lindberg Long Lopez Lynch Marsh Martinez Mason Matthews Meyer Miller Mitchell Moore
    Moreno Morgan Morris Murphy Murray Nakamura Nelson Newman Nguyen Novak Olsen Owens Palmer Park Parker Patel
    Pearson Perez Perry Peterson Phillips Porter Powell Price Quinn Ramirez Reed Reyes Rivera Rossi Sato
"""
FIRST, LAST = tuple(_FIRST.split()), tuple(_LAST.split())
NAMES = tuple(f"{first} {last}" for first in FIRST for last in LAST)
LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
