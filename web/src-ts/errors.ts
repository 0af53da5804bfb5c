/**
 * What kind of failure it was:
 *
 * - `io`: a source could not be read; the image itself may be fine.
 * - `changed`: the source is no longer what was opened; nothing of what it is now has been read.
 * - `not-this-format`: the bytes are not of the format they were opened as.
 * - `unsupported`: a valid image asks for something that this version does not do.
 * - `corrupt`: the image contradicts its specification.
 * - `refused`: a file named inside the image was not supplied, or something stands in the way that is not to be
 *   changed unasked: a storage that is not empty, a snapshot that is being read.
 * - `out-of-range`: an offset, length or snapshot that the image does not have.
 * - `dependency`: a supplied backing or data file could not be opened; `cause` says why.
 * - `cancelled`: the caller's `AbortSignal` stopped it.
 * - `busy`: the file is open elsewhere, in another tab for instance.
 * - `no-space`: the storage is full, or the browser's quota is. The image is good, and what was flushed is there.
 * - `read-only`: the image was not opened for writing, or its storage cannot be written to.
 * - `stopped`: an earlier write of the image's own tables or a flush failed, so that nothing more is written. What was
 *   flushed before is safe: open it again.
 * - `closed`: the image or the engine was closed before.
 * - `internal`: the engine failed; start another one.
 */
export type ErrorCode =
  | 'io'
  | 'changed'
  | 'not-this-format'
  | 'unsupported'
  | 'corrupt'
  | 'refused'
  | 'out-of-range'
  | 'dependency'
  | 'cancelled'
  | 'busy'
  | 'no-space'
  | 'read-only'
  | 'stopped'
  | 'closed'
  | 'internal';

/** A place in an image file. */
export interface Place {
  /** The structure's name, for instance `l1-table`. */
  structure: string;
  /** The byte of the file, where known. */
  offset?: number | bigint;
  /** The entry's index in the structure, where there is one. */
  index?: number | bigint;
}

/** An error in a form that `postMessage` carries. */
export interface ErrorRecord {
  code: ErrorCode;
  message: string;
  place?: Place;
  /** The file inside the image that the error is about. */
  file?: string;
  cause?: ErrorRecord;
}

/** The one error type of this package; programs look at `code`, people read `message`. */
export class OxcowError extends Error {
  override readonly name = 'OxcowError';
  readonly code: ErrorCode;
  /** Where in the image, for `corrupt`. */
  readonly place: Place | undefined;
  /** The name, as the image gives it, of the backing or data file that the error is about. */
  readonly file: string | undefined;

  constructor(code: ErrorCode, message: string, details: { place?: Place; file?: string; cause?: unknown } = {}) {
    super(message, details.cause === undefined ? undefined : { cause: details.cause });
    this.code = code;
    this.place = details.place;
    this.file = details.file;
  }

  /** The error as plain data. */
  toRecord(): ErrorRecord {
    const record: ErrorRecord = { code: this.code, message: this.message };
    if (this.place) record.place = this.place;
    if (this.file !== undefined) record.file = this.file;
    if (this.cause instanceof OxcowError) record.cause = this.cause.toRecord();
    return record;
  }

  static fromRecord(record: ErrorRecord): OxcowError {
    return new OxcowError(record.code, record.message, {
      ...(record.place && { place: record.place }),
      ...(record.file !== undefined && { file: record.file }),
      ...(record.cause && { cause: OxcowError.fromRecord(record.cause) }),
    });
  }
}

/** Whatever was thrown, as an `OxcowError`. */
export function asOxcowError(thrown: unknown): OxcowError {
  if (thrown instanceof OxcowError) return thrown;
  if (isRecord(thrown)) return OxcowError.fromRecord(thrown);
  if (thrown instanceof WebAssembly.RuntimeError) {
    return new OxcowError('internal', `The engine stopped: ${thrown.message}`, { cause: thrown });
  }
  const message = thrown instanceof Error ? thrown.message : String(thrown);
  return new OxcowError(isFull(thrown) ? 'no-space' : 'io', message, { cause: thrown });
}

/** What browsers and what Node throw where a storage is full. */
function isFull(thrown: unknown): boolean {
  if (!(thrown instanceof Error)) return false;
  return thrown.name === 'QuotaExceededError' || ('code' in thrown && (thrown.code === 'ENOSPC' || thrown.code === 'EDQUOT'));
}

function isRecord(thrown: unknown): thrown is ErrorRecord {
  return (
    typeof thrown === 'object' && thrown !== null && !(thrown instanceof Error) && 'code' in thrown && 'message' in thrown
  );
}

/** The error of a call that its signal stopped. */
export function cancelled(signal?: AbortSignal): OxcowError {
  return new OxcowError('cancelled', 'Operation cancelled', { cause: signal?.reason });
}
