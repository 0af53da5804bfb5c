// <ox-download>: saves the disk as raw bytes.

import type { DiskImage, OxcowError } from 'oxcow';
import { css, html, LitElement, nothing, type PropertyValues, type TemplateResult } from 'lit';

import { icons } from '../icons.js';
import { saveRaw } from '../save.js';
import { asError } from '../session.js';
import { base } from '../styles.js';
import { exact, percent, size } from '../words.js';

export class Download extends LitElement {
  static override properties = {
    image: { attribute: false },
    view: { attribute: false },
    name: { attribute: false },
    what: { attribute: false },
    _done: { state: true },
    _stop: { state: true },
    _error: { state: true },
    _saved: { state: true },
  };
  declare image: DiskImage | undefined;
  declare view: number;
  /** The name of the file to save. */
  declare name: string;
  /** What of the image it is, in words. */
  declare what: string;
  declare _done: number;
  declare _stop: AbortController | undefined;
  declare _error: OxcowError | undefined;
  declare _saved: boolean;

  static override styles = [
    base,
    css`
      .running {
        display: grid;
        gap: 0.5rem;
      }
    `,
  ];

  constructor() {
    super();
    this.view = 0;
    this._done = 0;
    this._saved = false;
  }

  override willUpdate(changed: PropertyValues<this>): void {
    if (!changed.has('image') && !changed.has('view')) return;
    this._stop?.abort();
    this._error = undefined;
    this._saved = false;
  }

  override disconnectedCallback(): void {
    super.disconnectedCallback();
    this._stop?.abort();
  }

  override render(): TemplateResult {
    const total = this.image?.virtualSize ?? 0;
    return html`<div class="stack">
      <p class="small muted">
        The disk’s bytes as they are, without a format around them: ${this.what}. It is written while it is read, so it may be larger
        than memory.
      </p>
      ${this._stop
        ? html`<div class="running">
            <progress aria-label="Saving" max="1" .value=${Number(total) > 0 ? this._done / Number(total) : 0}></progress>
            <div class="row">
              <button @click=${() => this._stop?.abort()}>Cancel</button>
              <span class="small number">${size(this._done)} of ${size(total)} (${percent(this._done, total)})</span>
            </div>
            <p class="hide" role="status">${Number(total) > 0 ? Math.floor((this._done / Number(total)) * 4) * 25 : 0}% saved</p>
          </div>`
        : html`<div class="row">
            <button class="primary" @click=${() => this.#save()}>Save as raw, ${size(total)}</button>
            <code class="small name">${this.name}</code>
          </div>`}
      <div role="status">${this.#outcome()}</div>
    </div>`;
  }

  #outcome(): TemplateResult | typeof nothing {
    if (this._error) {
      return this._error.code === 'cancelled'
        ? html`<p class="note">${icons.info}<span>Cancelled. The file is not complete.</span></p>`
        : html`<p class="note danger">${icons.danger}<span><strong>Not saved.</strong> ${this._error.message}</span></p>`;
    }
    return this._saved
      ? html`<p class="note ok">${icons.ok}<span><strong>Saved.</strong> ${exact(this.image?.virtualSize ?? 0)}.</span></p>`
      : nothing;
  }

  async #save(): Promise<void> {
    const { image } = this;
    if (!image) return;
    const stop = new AbortController();
    this._stop = stop;
    this._done = 0;
    this._error = undefined;
    this._saved = false;
    try {
      this._saved = await saveRaw(image, this.name, {
        signal: stop.signal,
        onProgress: (done) => (this._done = done),
      });
    } catch (error) {
      this._error = asError(error);
    } finally {
      if (this._stop === stop) this._stop = undefined;
      this.dispatchEvent(new CustomEvent('activity', { bubbles: true, composed: true }));
    }
  }
}

customElements.define('ox-download', Download);
