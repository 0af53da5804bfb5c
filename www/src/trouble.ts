// What went wrong, in words, and what is safe all the same.

import { OxcowError } from 'oxcow';

import { sentence } from './words.js';

export function asError(error: unknown): OxcowError {
  return error instanceof OxcowError ? error : new OxcowError('internal', error instanceof Error ? error.message : String(error));
}

/** Says of an error what it means for the images that are kept here. */
export function trouble(error: OxcowError): string {
  switch (error.code) {
    case 'busy':
      return 'The image is open in another tab or window of this browser. Close it there first. Nothing was changed.';
    case 'no-space':
      return 'There is no room left for this page. Nothing that was saved is lost, and the image is good. Delete stored images that are no longer needed, or free some space on this computer, and try again.';
    case 'stopped':
      return 'A write failed before, so nothing more is written to this image. Everything that was saved before is safe: open the image again.';
    case 'read-only':
      return 'This image can only be read here. Make a writable copy, or import it. Nothing was changed.';
    case 'cancelled':
      return 'Cancelled. What was there before is as it was.';
    default:
      return sentence(error.message);
  }
}
