"""DICOMweb (PS3.18). The first four know no route and no catalogue.

multipart   multipart/related bodies, read and written piece by piece
media       which media type an Accept header asks for
json_model  the DICOM JSON model (annex F) of studies, series, instances and answers to STOW-RS
query       QIDO-RS: what a search asks for, and what matches
archive     a project's volumes as studies, series and instances, found by their UIDs
receiving   STOW-RS: the instances of a body, taken in
sending     WADO-RS: instances, their metadata and pixels, sent piece by piece
"""
