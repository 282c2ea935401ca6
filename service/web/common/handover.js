/** What one view hands to another: pictures chosen on the map for Browse, and the last answer of Ask for the map. */

const state = { chosen: null, asked: null };

/** Hand over pictures, each with key, metadata and stored. */
export const handOver = (items) => { state.chosen = items; };

/** Return the pictures that were handed over last, or null. */
export const handedOver = () => state.chosen;

/** Remember the last answer: the name of the picture, and the keys of the pictures nearest to it. */
export const setAsked = (asked) => { state.asked = asked; };

export const lastAsked = () => state.asked;
