"""A prediction in the forms that hospitals read: FHIR (R4, R5) and a DICOM structured report."""
