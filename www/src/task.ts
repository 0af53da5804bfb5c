// Something long that an element does: its progress, its end, and the button that stops it.

import type { OxcowError } from 'oxcow';
import { html, nothing, type ReactiveController, type ReactiveControllerHost, type TemplateResult } from 'lit';

import { icons } from './icons.js';
import { asError, trouble } from './trouble.js';
import { percent } from './words.js';

/** What follows and stops it. */
export interface Watch {
  signal: AbortSignal;
  onProgress(done: number, total: number): void;
}

export class Task implements ReactiveController {
  error: OxcowError | undefined;
  /** What it is doing, while it does: `Importing`. */
  doing: string | undefined;
  #done = 0;
  #stop: AbortController | undefined;

  constructor(readonly host: ReactiveControllerHost & EventTarget) {
    host.addController(this);
  }

  get running(): boolean {
    return this.#stop !== undefined;
  }

  hostDisconnected(): void {
    this.cancel();
  }

  cancel(): void {
    this.#stop?.abort();
  }

  forget(): void {
    this.error = undefined;
    this.host.requestUpdate();
  }

  /** Does `work`, one at a time. `undefined`: it failed, and `error` says why. */
  async run<T>(doing: string, work: (watch: Watch) => Promise<T>): Promise<T | undefined> {
    if (this.#stop) return undefined;
    const stop = new AbortController();
    this.#stop = stop;
    this.#done = 0;
    this.doing = doing;
    this.error = undefined;
    this.host.requestUpdate();
    try {
      return await work({
        signal: stop.signal,
        onProgress: (done, total) => {
          this.#done = total > 0 ? done / total : 0;
          this.host.requestUpdate();
        },
      });
    } catch (error) {
      this.error = asError(error);
      return undefined;
    } finally {
      this.#stop = undefined;
      this.host.requestUpdate();
      this.host.dispatchEvent(new CustomEvent('activity', { bubbles: true, composed: true }));
    }
  }

  /** The progress bar with its button; nothing while nothing is done. */
  progress(): TemplateResult | typeof nothing {
    if (!this.running) return nothing;
    return html`<div class="running">
      <progress aria-label=${this.doing ?? ''} max="1" .value=${this.#done}></progress>
      <div class="row">
        <button type="button" @click=${() => this.cancel()}>Cancel</button>
        <span class="small number">${this.doing}: ${percent(Math.floor(this.#done * 1000), 1000)}</span>
      </div>
      <p class="hide" role="status">${this.doing}: ${Math.floor(this.#done * 4) * 25}%</p>
    </div>`;
  }

  /** Why it was not done; `what` says what was not: `Not imported`. */
  problem(what: string): TemplateResult | typeof nothing {
    const { error } = this;
    if (!error) return nothing;
    return error.code === 'cancelled'
      ? html`<p class="note" role="status">${icons.info}<span>${trouble(error)}</span></p>`
      : html`<p class="note danger" role="alert">${icons.danger}<span><strong>${what}.</strong> ${trouble(error)}</span></p>`;
  }
}
